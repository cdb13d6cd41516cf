"""The printed views run by the engines they are printed for: what they say, and how little they read."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from batchdet.analysis.committed import list_committed
from batchdet.analysis.query import ask_columns
from batchdet.analysis.relations import BASE_TABLES, BaseTable, base_statements
from batchdet.analysis.views import view_statements
from batchdet.errors import OutputError
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.schema import DETECTIONS, IMAGES, RUNS
from tests.analysis.engines import DataFusion, DuckDB, Engine, Spark
from tests.analysis.histories import (
    HISTORIES,
    QUESTIONS,
    Answers,
    History,
    Night,
    answers_of,
    arranged,
    play_into_one,
)
from tests.analysis.outputs import NEXT_MODEL, Image, close, commit, open_run, run_id, whole_run

HOSTILE = "it's; DROP TABLE x; -- {a,b} %20 é"
WITH_PATTERNS = HOSTILE + " [1]*?"
ENGINES = [DuckDB, DataFusion, Spark]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    made: Engine = request.param()
    return made


def define(engine: Engine, output: Store) -> Engine:
    engine.define(view_statements(engine.dialect, output.uri, list_committed(output).filled))
    return engine


def answers(engine: Engine) -> Answers:
    return {question: rows(engine.ask(sql)) for question, sql in QUESTIONS.items()}


def rows(table: pa.Table) -> list[tuple[object, ...]]:
    return arranged(zip(*(column.to_pylist() for column in table.columns), strict=True))


@settings(max_examples=15, deadline=None)
@given(nights=HISTORIES)
def test_views_say_what_a_dictionary_says(tmp_path_factory: pytest.TempPathFactory, nights: list[Night]) -> None:
    history = History(nights)
    output = open_store(str(tmp_path_factory.mktemp("history")), {})
    history.play(output)
    if all(night.ending == "open" for night in nights):
        with pytest.raises(OutputError):
            ask_columns(output, QUESTIONS["runs"])
        return
    want = history.answers()
    assert {question: rows(ask_columns(output, sql)) for question, sql in QUESTIONS.items()} == want
    for engine in (DuckDB(), DataFusion()):
        assert answers(define(engine, output)) == want, engine.dialect


def check_spark(root: Path, histories: list[list[Night]]) -> None:
    played = [History(nights, folder) for folder, nights in enumerate(histories)]
    spark = define(Spark(), play_into_one(played, root))
    assert answers(spark) == answers_of(played)


MANY = st.lists(HISTORIES, min_size=6, max_size=6)
AS_DRAWN = (Phase.explicit, Phase.reuse, Phase.generate)


@settings(max_examples=2, deadline=None, phases=AS_DRAWN, suppress_health_check=list(HealthCheck))
@given(histories=MANY)
def test_spark_says_what_a_dictionary_says(
    tmp_path_factory: pytest.TempPathFactory, histories: list[list[Night]]
) -> None:
    check_spark(tmp_path_factory.mktemp("histories"), histories)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=40, deadline=None, phases=AS_DRAWN, suppress_health_check=list(HealthCheck))
@given(histories=MANY)
def test_spark_says_what_a_dictionary_says_at_length(
    tmp_path_factory: pytest.TempPathFactory, histories: list[list[Night]]
) -> None:
    check_spark(tmp_path_factory.mktemp("histories"), histories)


@pytest.fixture(scope="module")
def superseded(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four runs of two shards: the second labels all images of the first again, the last two are not done."""
    output = open_store(str(tmp_path_factory.mktemp("superseded")), {})
    images = {f"s3://b/{number}": Image(5, 20) for number in range(4)}
    whole_run(output, 1, images)
    for number, ending in ((2, "complete"), (3, "partial"), (4, "open")):
        plan = open_run(output, number, dict.fromkeys(images, "e"), model=NEXT_MODEL)
        commit(output, plan, images)
        if ending != "open":
            close(output, plan, ending)
    return output


@pytest.mark.parametrize(
    ("sql", "files"),
    [
        ("SELECT sum(score) FROM all_detections", 8),
        (f"SELECT sum(score) FROM all_detections WHERE run_id = '{run_id(3)}'", 2),
        (f"SELECT sum(score) FROM all_detections WHERE run_id >= '{run_id(3)}'", 4),
        (f"SELECT sum(score) FROM current_detections WHERE run_id = '{run_id(2)}'", 2),
        ("SELECT sum(score) FROM current_detections", 2),
    ],
    ids=["all", "one run", "two runs", "one run, current", "current"],
)
def test_detections_of_other_runs_are_not_read(engine: Engine, superseded: Store, sql: str, files: int) -> None:
    define(engine, superseded)
    assert engine.files_read(sql, "detections") == files


def test_images_of_other_runs_are_not_read(engine: Engine, superseded: Store) -> None:
    define(engine, superseded)
    assert engine.files_read("SELECT sum(width) FROM all_images", "images") == 8
    assert engine.files_read(f"SELECT sum(width) FROM all_images WHERE run_id = '{run_id(3)}'", "images") == 2


def test_spark_filters_partitions(superseded: Store) -> None:
    spark = Spark()
    define(spark, superseded)
    for view in ("all_detections", "current_detections"):
        plan = spark.plan(f"SELECT sum(score) FROM {view} WHERE run_id = '{run_id(2)}'")
        (scan,) = [line for line in plan.splitlines() if "FileScan" in line and "/detections]" in line]
        assert f" = {run_id(2)})" in scan.partition("PartitionFilters:")[2].partition("]")[0]


@pytest.mark.parametrize("folder", ["plain", HOSTILE, WITH_PATTERNS])
def test_every_column_comes_back_from_any_folder(tmp_path: Path, engine: Engine, folder: str) -> None:
    output = open_store(str(tmp_path / folder), {})
    plan = whole_run(output, 1, {"s3://b/a": Image(2, 1), "s3://b/b": Image(failure="empty"), "s3://b/it's": Image()})
    define(engine, output)
    for view, table, schema in (
        ("runs", "runs", RUNS),
        ("current_images", "images", IMAGES),
        ("current_candidates", "detections", DETECTIONS),
    ):
        paths = sorted((tmp_path / folder / table).rglob("*.parquet"))
        written = pa.concat_tables([pq.ParquetFile(path).read() for path in paths]).replace_schema_metadata(None)
        found = engine.ask(f"SELECT * FROM {view} ORDER BY {', '.join(schema.names[:2])}")
        assert found.column_names == schema.names + ([] if table == "runs" else ["run_id"])
        assert plain(found.select(schema.names), schema).equals(plain(written, schema)), view
        assert set(found["run_id"].to_pylist()) == {plan.run_id}


def plain(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table without dictionaries, in the schema's types."""
    fields = [pa.field(field.name, getattr(field.type, "value_type", field.type)) for field in schema]
    lists = {field.name for field in schema if pa.types.is_list(field.type)}
    return table.cast(
        pa.schema([schema.field(field.name) if field.name in lists else field for field in fields])
    ).combine_chunks()


@pytest.mark.parametrize("table", BASE_TABLES, ids=lambda table: table.name)
def test_a_column_that_older_files_lack_is_null_there(tmp_path: Path, engine: Engine, table: BaseTable) -> None:
    output = open_store(str(tmp_path), {})
    for number in (1, 2, 3):
        whole_run(output, number, {f"s3://b/{number}": Image(1)})
    grown = BaseTable(
        table.name,
        table.folder,
        table.files,
        table.schema.append(pa.field("made", pa.int32())),
        table.is_partitioned,
        added=frozenset({"made"}),
    )
    engine.define(base_statements(engine.dialect, grown, output.uri, is_filled=True))
    question = f"SELECT run_id, made FROM {table.name}"
    assert rows(engine.ask(question)) == [(run_id(number), None) for number in (1, 2, 3)]
    (path,) = [path for path in (tmp_path / table.folder).rglob("*.parquet") if run_id(2) in str(path)]
    written = pq.ParquetFile(path).read()
    pq.write_table(written.append_column("made", pa.array([7] * len(written), pa.int32())), path)
    engine.define(base_statements(engine.dialect, grown, output.uri, is_filled=True))
    assert rows(engine.ask(question)) == [(run_id(1), None), (run_id(2), 7), (run_id(3), None)]
    engine.define(base_statements(engine.dialect, table, output.uri, is_filled=True))
    assert "made" not in engine.ask(f"SELECT * FROM {table.name}").column_names


def test_an_output_whose_runs_found_nothing_has_empty_views(tmp_path: Path, engine: Engine) -> None:
    output = open_store(str(tmp_path), {})
    close(output, open_run(output, 1, {}))
    define(engine, output)
    for question, sql in QUESTIONS.items():
        table = engine.ask(sql)
        assert len(table) == (1 if question == "runs" else 0), question
    assert pc.all(pc.is_valid(engine.ask("SELECT run_id FROM runs")["run_id"])).as_py()
