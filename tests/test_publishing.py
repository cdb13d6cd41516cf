"""Committed files as Delta and Iceberg tables: the same rows to every reader, a night whole or not at all."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyiceberg.catalog import load_catalog
from pyiceberg.table import Table

from batchdet import publishing
from batchdet.analysis.committed import list_committed
from batchdet.cli.main import main
from batchdet.errors import ConfigError, OutputError, StorageError
from batchdet.job_file import load_config
from batchdet.outlets import PublishConfig
from batchdet.publishing import publish_runs, told
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.layout import is_kept
from batchdet.storage.ledger import Ledger
from batchdet.storage.schema import IMAGES
from tests.analysis.outputs import Image, commit, open_run, run_id, whole_run
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import Bucket
from tests.storage.stores import IMPATIENT

NIGHT_1 = {"s3://b/a": Image(2, 1), "s3://b/b": Image(failure="truncated"), "s3://b/c\td 'é": Image()}
NIGHT_2 = {"s3://b/d": Image(1), "s3://b/e": Image(3)}
TABLES = ("detections", "images", "runs")
Row = dict[str, Any]


class Format:
    """A table format over one output: publish to it, and read it back as others do."""

    def __init__(self, store: Store, settings: PublishConfig, env: dict[str, str]) -> None:
        self.store, self.settings, self.env = store, settings, env

    def publish(self) -> list[publishing.Publication]:
        return publish_runs(self.store, self.settings)

    def rows(self, table: str, version: str | None = None) -> list[Row]:
        raise NotImplementedError


class Delta(Format):
    def open(self, table: str, version: str | None = None) -> DeltaTable:
        uri = self.store.path(table) if self.store.is_local else self.store.child_uri(table)
        options = self.env | {"AWS_ALLOW_HTTP": "true"} if self.env else None
        return DeltaTable(uri, version=None if version is None else int(version), storage_options=options)

    def rows(self, table: str, version: str | None = None) -> list[Row]:
        return self.open(table, version).to_pyarrow_table().to_pylist()


class Iceberg(Format):
    def open(self, table: str) -> Table:
        properties = dict(self.settings.catalog)
        if not properties:
            properties = {"type": "sql", "uri": f"sqlite:///{self.store.path('_iceberg')}/catalog.db"}
        if self.env:
            properties |= {
                "s3.endpoint": self.env["AWS_ENDPOINT_URL"],
                "s3.access-key-id": self.env["AWS_ACCESS_KEY_ID"],
                "s3.secret-access-key": self.env["AWS_SECRET_ACCESS_KEY"],
            }
        return load_catalog("default", **properties).load_table(f"batchdet.{table}")

    def rows(self, table: str, version: str | None = None) -> list[Row]:
        scan = self.open(table).scan(snapshot_id=None if version is None else int(version))
        return scan.to_arrow().to_pylist()


@pytest.fixture(params=["delta", "iceberg"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def on_disk(kind: str, tmp_path: Path) -> Format:
    store = open_store(str(tmp_path / "out put"), {})
    return (Delta if kind == "delta" else Iceberg)(store, PublishConfig(format=kind), {})


@pytest.fixture(params=["file", "moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def published(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path, reach: Callable[[Bucket], Bucket]
) -> Iterator[Format]:
    if request.param == "file":
        yield request.getfixturevalue("on_disk")
        return
    bucket = reach(request.getfixturevalue("new_bucket_on")(request.param))
    store = open_store(f"{bucket.uri}/out put", {})
    if kind == "delta":
        yield Delta(store, PublishConfig(format="delta"), bucket.env)
    else:
        catalog = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db"}
        yield Iceberg(store, PublishConfig(format="iceberg", catalog=catalog), bucket.env)


def parquet_rows(store: Store, table: str) -> list[Row]:
    """The oracle: each committed file by itself, as pyarrow reads it, and its run from its name."""
    rows: list[Row] = []
    for name in list_committed(store).sizes:
        if name.startswith(f"{table}/"):
            run = {} if table == "runs" else {"run_id": name.split("/")[1].removeprefix("run_id=")}
            rows += [row | run for row in pq.ParquetFile(io.BytesIO(store.read_bytes(name))).read().to_pylist()]
    return rows


def same(found: list[Row], expected: list[Row]) -> bool:
    def key(row: Row) -> str:
        return json.dumps(row, sort_keys=True, default=str)

    columns = {name for row in found for name in row}
    filled = [dict.fromkeys(columns) | row for row in expected]
    return sorted(map(key, found)) == sorted(map(key, filled))


def test_every_reader_sees_the_committed_rows(published: Format) -> None:
    whole_run(published.store, 1, NIGHT_1)
    first = published.publish()
    assert [(each.table, each.files_added, each.files_removed) for each in first] == [
        ("detections", 2, 0),
        ("images", 2, 0),
        ("runs", 1, 0),
    ]
    whole_run(published.store, 2, {**NIGHT_1, **NIGHT_2})
    second = published.publish()
    assert [each.files_added for each in second] == [2, 2, 1], "what failed is labelled again"
    for table in TABLES:
        assert same(published.rows(table), parquet_rows(published.store, table)), table
    assert len(published.rows("images")) == len(NIGHT_1) + 1 + len(NIGHT_2)


def test_a_publication_again_adds_nothing(published: Format) -> None:
    whole_run(published.store, 1, NIGHT_1)
    first = published.publish()
    again = published.publish()
    assert not any(each.changed for each in again)
    assert [each.version for each in again] == [each.version for each in first]
    assert told(again).startswith("published: detections ")


def test_an_older_night_can_be_read_again(on_disk: Format) -> None:
    whole_run(on_disk.store, 1, NIGHT_1)
    then = {each.table: each.version for each in on_disk.publish()}
    before = {table: on_disk.rows(table) for table in TABLES}
    whole_run(on_disk.store, 2, NIGHT_2)
    on_disk.publish()
    for table in TABLES:
        assert same(on_disk.rows(table, then[table]), before[table])
        assert len(on_disk.rows(table)) > len(before[table])


def test_open_and_partial_runs_are_not_published(on_disk: Format) -> None:
    with pytest.raises(OutputError):
        on_disk.publish()
    whole_run(on_disk.store, 1, NIGHT_1)
    plan = open_run(on_disk.store, 2, dict.fromkeys(NIGHT_2, "e"), images_per_shard=1)
    commit(on_disk.store, plan, NIGHT_2, [0])
    on_disk.publish()
    assert {row["run_id"] for row in on_disk.rows("images")} == {run_id(1)}
    ledger = Ledger(on_disk.store)
    ledger.close(ledger.closing_row(plan, "partial", 0.0))
    on_disk.publish()
    assert {row["run_id"] for row in on_disk.rows("images")} == {run_id(1)}
    assert {row["run_id"]: row["status"] for row in on_disk.rows("runs")} == {
        run_id(1): "complete",
        run_id(2): "partial",
    }


def test_runs_that_were_missed_are_caught_up_with(on_disk: Format) -> None:
    for number in (1, 2, 3):
        whole_run(on_disk.store, number, {f"s3://b/{number}": Image(number)})
    assert [each.files_added for each in on_disk.publish()] == [3, 3, 3]
    for table in TABLES:
        assert same(on_disk.rows(table), parquet_rows(on_disk.store, table))


def test_a_crash_between_tables_is_mended_by_the_next(on_disk: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_run(on_disk.store, 1, NIGHT_1)
    on_disk.publish()
    whole_run(on_disk.store, 2, NIGHT_2)
    detections = next(iter(publishing.wanted_tables(on_disk.store)))
    monkeypatch.setattr(publishing, "wanted_tables", lambda _: iter([detections]))
    on_disk.publish()
    monkeypatch.undo()
    assert {row["run_id"] for row in on_disk.rows("detections")} == {run_id(1), run_id(2)}
    assert {row["run_id"] for row in on_disk.rows("images")} == {run_id(1)}
    assert [each.changed for each in on_disk.publish()] == [False, True, True]
    for table in TABLES:
        assert same(on_disk.rows(table), parquet_rows(on_disk.store, table))


def test_what_replaces_runs_comes_as_they_go(on_disk: Format) -> None:
    whole_run(on_disk.store, 1, NIGHT_1)
    whole_run(on_disk.store, 2, NIGHT_2)
    before = {each.table: each.version for each in on_disk.publish()}
    whole_run(on_disk.store, 3, {**NIGHT_1, **NIGHT_2}, etag="new")
    for number in (1, 2):
        on_disk.store.delete(f"runs/{run_id(number)}.parquet")
    changes = on_disk.publish()
    assert [(each.files_added, each.files_removed) for each in changes] == [(3, 3), (3, 3), (1, 2)]
    for table in TABLES:
        assert {row["run_id"] for row in on_disk.rows(table)} == {run_id(3)}
        assert same(on_disk.rows(table), parquet_rows(on_disk.store, table))
    images = {row["run_id"] for row in on_disk.rows("images", before["images"])}
    assert images == {run_id(1), run_id(2)}, "the files are there, so the old version is"
    versions = [each.version for each in changes]
    assert versions == [each.version for each in on_disk.publish()]


def without_column(store: Store, table: str, column: str) -> None:
    """Rewrite files as an older batchdet wrote them."""
    for name in list_committed(store).sizes:
        if name.startswith(f"{table}/"):
            file = pq.ParquetFile(io.BytesIO(store.read_bytes(name)))
            sink = pa.BufferOutputStream()
            metadata = file.schema_arrow.metadata
            pq.write_table(file.read().drop_columns([column]).replace_schema_metadata(metadata), sink)
            store.write_bytes(name, sink.getvalue().to_pybytes())


def test_columns_that_came_later_are_null_in_older_rows(on_disk: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    older = pa.schema([field for field in IMAGES if field.name != "decoder"])
    whole_run(on_disk.store, 1, NIGHT_1)
    without_column(on_disk.store, "images", "decoder")
    monkeypatch.setattr(
        publishing, "ORDER", [(name, older if name == "images" else schema) for name, schema in publishing.ORDER]
    )
    then = {each.table: each.version for each in on_disk.publish()}
    assert "decoder" not in on_disk.rows("images")[0]
    monkeypatch.undo()
    whole_run(on_disk.store, 2, NIGHT_2)
    on_disk.publish()
    decoders = {row["image_uri"]: row["decoder"] for row in on_disk.rows("images")}
    assert decoders == {**dict.fromkeys(NIGHT_1), **dict.fromkeys(NIGHT_2, "none")}
    assert same(on_disk.rows("images"), parquet_rows(on_disk.store, "images"))
    assert len(on_disk.rows("images", then["images"])) == len(NIGHT_1)


def test_a_new_table_takes_files_of_every_age(on_disk: Format) -> None:
    whole_run(on_disk.store, 1, NIGHT_1)
    without_column(on_disk.store, "images", "decoder")
    whole_run(on_disk.store, 2, NIGHT_2)
    on_disk.publish()
    assert same(on_disk.rows("images"), parquet_rows(on_disk.store, "images"))


def test_duckdb_counts_as_it_does_over_the_parquet_files(on_disk: Format) -> None:
    for number, night in enumerate((NIGHT_1, NIGHT_2), 1):
        whole_run(on_disk.store, number, night)
    on_disk.publish()
    table = on_disk.open("detections")  # type: ignore[attr-defined]
    seen = table.to_pyarrow_dataset() if isinstance(table, DeltaTable) else table.scan().to_arrow()
    question = "SELECT run_id, category, count(*), sum(score) FROM {} WHERE accepted GROUP BY ALL ORDER BY ALL"
    connection = duckdb.connect()
    connection.register("seen", seen)
    files = f"read_parquet('{on_disk.store.path('detections')}/run_id=*/*.parquet', hive_partitioning = true)"
    assert connection.sql(question.format("seen")).fetchall() == connection.sql(question.format(files)).fetchall()


def test_pruning_finds_what_is_there(on_disk: Format) -> None:
    for number, night in enumerate((NIGHT_1, NIGHT_2), 1):
        whole_run(on_disk.store, number, night)
    on_disk.publish()
    for uri in {**NIGHT_1, **NIGHT_2}:
        table = on_disk.open("images")  # type: ignore[attr-defined]
        if isinstance(table, DeltaTable):
            found = table.to_pyarrow_table(filters=[("image_uri", "=", uri)])
        else:
            from pyiceberg.expressions import EqualTo

            found = table.scan(row_filter=EqualTo("image_uri", uri)).to_arrow()
        assert found["image_uri"].to_pylist() == [uri]


def test_everything_written_is_the_outputs_own(on_disk: Format) -> None:
    whole_run(on_disk.store, 1, NIGHT_1)
    on_disk.publish()
    folder = Path(on_disk.store.path(""))
    written = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert [name for name in written if not is_kept(name)] == []
    assert main(["audit", str(folder)]) == 0


def test_vacuum_finds_nothing_to_delete(tmp_path: Path) -> None:
    output = Delta(open_store(str(tmp_path), {}), PublishConfig(format="delta"), {})
    whole_run(output.store, 1, NIGHT_1)
    output.publish()
    plan = open_run(output.store, 2, dict.fromkeys(NIGHT_2, "e"), images_per_shard=1)
    commit(output.store, plan, NIGHT_2, [0])
    table = output.open("images")
    assert table.metadata().configuration["delta.deletedFileRetentionDuration"] == "interval 5200 weeks"
    assert table.vacuum(dry_run=True) == []


def test_two_outputs_do_not_share_tables(tmp_path: Path) -> None:
    settings = PublishConfig(format="iceberg", catalog={"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db"})
    one, two = (Iceberg(open_store(str(tmp_path / name), {}), settings, {}) for name in ("one", "two"))
    whole_run(one.store, 1, NIGHT_1)
    whole_run(two.store, 1, NIGHT_2)
    one.publish()
    with pytest.raises(
        ConfigError, match=r"publish\.namespace: table batchdet\.detections is of file://.*/one, not of"
    ):
        two.publish()
    assert same(one.rows("images"), parquet_rows(one.store, "images"))


def test_a_store_that_refuses_the_log_leaves_the_table_as_it_was(
    faulty_bucket: Bucket, faults: FaultProxy, tmp_path: Path
) -> None:
    store = open_store(faulty_bucket.uri, {}, IMPATIENT)
    output = Delta(store, PublishConfig(format="delta"), faulty_bucket.env)
    whole_run(store, 1, NIGHT_1)
    output.publish()
    whole_run(store, 2, NIGHT_2)
    faults.add(Fault("images/_delta_log/00000000000000000001.json", "status", status=403, code="AccessDenied"))
    with pytest.raises(StorageError) as raised:
        output.publish()
    assert "moto-hush-hush" not in str(raised.value)
    assert {row["run_id"] for row in output.rows("images")} == {run_id(1)}
    faults.clear()
    output.publish()
    assert same(output.rows("images"), parquet_rows(store, "images"))


def test_no_secret_is_written(kind: str, moto_bucket: Bucket, tmp_path: Path) -> None:
    store = open_store(moto_bucket.uri, {})
    whole_run(store, 1, NIGHT_1)
    catalog = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db"} if kind == "iceberg" else {}
    publish_runs(store, PublishConfig(format=kind, catalog=catalog))
    written = [moto_bucket.get(key) for key in moto_bucket.keys("")]
    written += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 6
    assert not any(b"moto-hush-hush" in data for data in written)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"format": "hudi"}, "format"),
        ({"format": "iceberg", "catalog.token": "hush"}, r"publish\.catalog\.token looks like a secret"),
        (
            {"format": "iceberg", "catalog.uri": "postgresql://me:hush@db/x"},
            r"publish\.catalog\.uri looks like a secret",
        ),
        ({"format": "delta", "uri": "s3://b/c"}, "delta takes neither uri nor catalog"),
        ({"format": "iceberg", "namespace": "a b"}, "namespace"),
    ],
)
def test_settings_that_are_wrong_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(PublishConfig, None, fields)


def test_a_place_that_cannot_be_published_to_is_named(moto_bucket: Bucket, tmp_path: Path) -> None:
    memory = open_store(f"memory://{tmp_path.name}", {})
    whole_run(memory, 1, NIGHT_1)
    with pytest.raises(ConfigError, match="on a disk and on S3, not on memory://"):
        publish_runs(memory, PublishConfig(format="delta"))
    store = open_store(moto_bucket.uri, {})
    whole_run(store, 1, NIGHT_1)
    with pytest.raises(ConfigError, match=r"publish\.catalog: name Iceberg's catalog"):
        publish_runs(store, PublishConfig(format="iceberg"))


def test_the_command_publishes(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole_run(open_store(str(tmp_path), {}), 1, NIGHT_1)
    assert main(["publish", str(tmp_path), "--format", kind, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["table"], each["files_added"]) for each in found] == [("detections", 2), ("images", 2), ("runs", 1)]
    assert main(["publish", str(tmp_path), "--format", kind]) == 0
    assert capsys.readouterr().out.splitlines()[1].split("\t")[2:] == ["0", "0"]
    assert main(["publish", str(tmp_path / "none"), "--format", kind]) == 2
    assert "no runs here" in capsys.readouterr().err
    assert main(["publish", str(tmp_path), "--format", kind, "--set", "policy.nms=x"]) == 2
