"""The texts parse in their dialects, whatever the output is called."""

from pathlib import Path

import duckdb
import pytest
import sqlglot
from sqlglot import exp

from batchdet.analysis.query import print_views
from batchdet.analysis.relations import BASE_TABLES, Dialect
from batchdet.analysis.views import view_script, view_statements
from batchdet.storage.filesystem import open_store
from tests.analysis.outputs import Image, close, commit, open_run, whole_run

ALL = frozenset(table.folder for table in BASE_TABLES)
VIEWS = {"current_images", "current_candidates", "current_detections", "failures"}
BASES = {"runs", "all_images", "all_detections"}
FOLDERS = {"runs", "images", "detections"}
LAST_NAMES = {
    Dialect.DUCKDB: {"*.parquet", "shard-*.parquet"},
    Dialect.BIGQUERY: {"*.parquet", "images", "detections"},
} | dict.fromkeys((Dialect.SPARK, Dialect.ATHENA, Dialect.TRINO, Dialect.DATAFUSION), FOLDERS)
"""What the paths of a dialect end with."""

HOSTILE = "s3://bucket/it's; DROP TABLE x; -- \\ [1]*?{a,b} é"


PARSED_AS = {Dialect.DATAFUSION: ""}
"""sqlglot's name of a dialect, where it is another."""


def parse(dialect: Dialect, uri: str, filled: frozenset[str] = ALL) -> list[exp.Expression]:
    # sqlglot does not know BigQuery's clause for the columns in folder names
    text = view_script(dialect, uri, filled).replace(" WITH PARTITION COLUMNS (run_id STRING)", "")
    parsed = sqlglot.parse(text, dialect=PARSED_AS.get(dialect, dialect.value))
    return [statement for statement in parsed if statement is not None]


@pytest.mark.parametrize("filled", [ALL, frozenset({"runs"})])
@pytest.mark.parametrize("uri", ["s3://bucket/out", HOSTILE])
@pytest.mark.parametrize("dialect", list(Dialect))
def test_every_statement_parses(dialect: Dialect, uri: str, filled: frozenset[str]) -> None:
    statements = parse(dialect, uri, filled)
    created = [statement for statement in statements if isinstance(statement, exp.Create)]
    assert {statement.find(exp.Table).name for statement in created} == VIEWS | BASES
    assert not [statement for statement in statements if isinstance(statement, exp.Drop)]
    assert len(statements) == len(view_statements(dialect, uri, filled))


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_hostile_folder_stays_one_literal(dialect: Dialect) -> None:
    plain = parse(dialect, "s3://bucket/out")
    hostile = parse(dialect, HOSTILE)
    assert [type(statement) for statement in plain] == [type(statement) for statement in hostile]
    literals = [node.this for statement in hostile for node in statement.find_all(exp.Literal) if node.is_string]
    named = [text for text in literals if "DROP TABLE x" in text.replace("%20", " ")]
    assert {text.rstrip("/").rpartition("/")[2] for text in named} >= LAST_NAMES[dialect]


def test_the_printed_text_runs_in_a_duckdb_of_its_own(tmp_path: Path) -> None:
    output = open_store(str(tmp_path / "it's [1]*? out"), {})
    whole_run(output, 1, {"s3://b/a": Image(2, 1), "s3://b/b": Image(failure="empty")})
    partial = open_run(output, 2, {"s3://b/a": "2", "s3://b/c": "2", "s3://b/d": "2"})
    commit(output, partial, {"s3://b/a": Image(5)}, [0])
    close(output, partial, "partial")
    commit(output, open_run(output, 3, {"s3://b/a": "3", "s3://b/b": "3"}), {"s3://b/a": Image(5)})
    with duckdb.connect() as connection:
        connection.execute(print_views(output, Dialect.DUCKDB))
        for view, count in {
            "current_images": 2,
            "current_candidates": 3,
            "current_detections": 2,
            "failures": 1,
        }.items():
            assert connection.execute(f"SELECT count(*) FROM {view}").fetchone() == (count,), view
        described = connection.execute("DESCRIBE current_detections").fetchall()
    assert ("category", "VARCHAR") in {(name, kind) for name, kind, *_ in described}


def test_empty_relations_have_the_types_of_full_ones(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    whole_run(output, 1, {"s3://b/a": Image(1)})
    described = []
    for filled in (ALL, frozenset({"runs"})):
        with duckdb.connect() as connection:
            for statement in view_statements(Dialect.DUCKDB, output.uri, filled):
                connection.execute(statement)
            described.append(
                [connection.execute(f"DESCRIBE {table}").fetchall() for table in sorted(VIEWS | BASES - {"runs"})]
            )
    assert described[0] == described[1]


def test_bigquery_is_told_the_partitions() -> None:
    text = view_script(Dialect.BIGQUERY, "gs://bucket/it's", ALL)
    assert text.count(" WITH PARTITION COLUMNS (run_id STRING) OPTIONS (") == 2
    for folder in ("images", "detections"):
        assert f"uris = ['gs://bucket/it\\'s/{folder}/*.parquet']" in text
        assert f"hive_partition_uri_prefix = 'gs://bucket/it\\'s/{folder}'" in text
    tables = [
        table for statement in parse(Dialect.BIGQUERY, "gs://bucket/out") for table in statement.find_all(exp.Table)
    ]
    assert tables
    assert {table.db for table in tables} == {"batchdet"}, "a view of BigQuery must name the dataset of what it reads"


def test_spark_reads_s3_through_its_own_scheme() -> None:
    assert "s3a://bucket/out/images" in view_script(Dialect.SPARK, "s3://bucket/out", ALL)
    assert "s3://bucket/out/images/" in view_script(Dialect.ATHENA, "s3://bucket/out", ALL)
