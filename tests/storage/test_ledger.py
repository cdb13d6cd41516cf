"""Done is committed: commit, resume and close on a disk, in memory and on S3; the tables read by other programs."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import fsspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchdet.config import PlanConfig
from batchdet.errors import OpenShardsError, SchemaVersionError, StorageError
from batchdet.records import RunRow
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.ledger import Ledger, RunCounts
from batchdet.storage.patience import Patience
from batchdet.storage.plan import PlanHeader, RunPlan, new_run_id, read_plan, read_shard
from batchdet.storage.planning import make_plan
from batchdet.storage.schema import RUNS
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import Bucket
from tests.storage.made import CATEGORIES, NOON, failed, header, labelled, listing, outcomes, refs

IMAGES = 22
PER_SHARD = 8


@pytest.fixture(params=["local", "memory", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "out put #1"), {})
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return open_store("memory://ledger/out", {})
    return open_store(f"{request.getfixturevalue('moto_bucket').uri}/labels/out", {})


def open_run(output: Store, head: PlanHeader | None = None, images: int = IMAGES) -> RunPlan:
    ledger = Ledger(output)
    known = ledger.known_images([row.run_id for row in ledger.complete_runs()])
    return make_plan(output, head or header(), listing(refs(images)), known, PlanConfig(images_per_shard=PER_SHARD))


def commit_all(output: Store, plan: RunPlan, at: datetime = NOON) -> None:
    ledger = Ledger(output, lambda: at)
    for shard_id in range(plan.num_shards):
        shard = read_shard(output, plan, shard_id)
        ledger.commit(plan, shard, outcomes(shard))


def finish(output: Store, plan: RunPlan) -> RunRow:
    commit_all(output, plan)
    row = Ledger(output).closing_row(plan, "complete", 12.5)
    Ledger(output).close(row)
    return row


def table(output: Store, name: str, run_id: str) -> pa.Table:
    folder = f"{name}/run_id={run_id}"
    parts = [pq.read_table(io.BytesIO(output.read_bytes(part))) for part in output.list(folder)]
    return pa.concat_tables(parts)


def test_a_run_from_plan_to_close(output: Store) -> None:
    ledger = Ledger(output)
    assert (ledger.open_runs(), ledger.run_rows(), ledger.run_ids(), ledger.committed("x")) == ([], [], [], set())
    plan = open_run(output)
    assert ledger.open_runs() == [plan]
    assert ledger.committed(plan.run_id) == set()
    for done, shard_id in enumerate([2, 0, 1]):
        shard = read_shard(output, plan, shard_id)
        report = ledger.commit(plan, shard, outcomes(shard))
        assert len(ledger.committed(plan.run_id)) == done + 1
        assert report.num_images == report.num_labelled + report.num_failed == len(shard.images)
    row = ledger.closing_row(plan, "complete", 12.5)
    assert ledger.open_runs() == [plan], "a row that is not written closes nothing"
    ledger.close(row)
    assert (ledger.open_runs(), ledger.run_rows(), ledger.complete_runs()) == ([], [row], [row])
    assert ledger.run_ids() == [plan.run_id]
    assert row.num_listed == row.num_labelled + row.num_failed + row.num_unchanged == IMAGES, "law 1"
    assert (row.num_failed, row.num_empty, row.num_unchanged, row.num_deleted) == (3, 3, 0, 0)
    assert (row.categories, row.policy_digest, row.images_per_second) == (CATEGORIES, "sha256:policy", 12.5)


def test_counts_are_those_of_the_rows(output: Store) -> None:
    plan = open_run(output)
    commit_all(output, plan)
    images = table(output, "images", plan.run_id).to_pandas()
    detections = table(output, "detections", plan.run_id).to_pandas()
    assert Ledger(output).counts(plan.run_id) == RunCounts(
        num_shards=3,
        num_images=len(images),
        num_labelled=int((images.status == "labelled").sum()),
        num_empty=int((images.num_detections == 0).sum()),
        num_failed=int((images.status == "failed").sum()),
        num_deleted=0,
        num_detections=int(detections.accepted.sum()),
        failures={"decode:truncated": 3},
    )
    assert images.num_candidates.sum() == len(detections)


def test_a_second_commit_overwrites_with_the_same_rows(output: Store) -> None:
    plan = open_run(output)
    commit_all(output, plan)
    files = {name: output.read_bytes(name) for kind in ("images", "detections") for name in names(output, kind, plan)}
    before = table(output, "images", plan.run_id)
    commit_all(output, plan)
    assert {name: output.read_bytes(name) for name in files} == files, "at the same moment: bit for bit"
    commit_all(output, plan, NOON + timedelta(hours=1))
    again = {name: output.read_bytes(name) for kind in ("images", "detections") for name in names(output, kind, plan)}
    assert again.keys() == files.keys(), "a retry adds no file"
    assert all(again[name] == files[name] for name in names(output, "detections", plan))
    after = table(output, "images", plan.run_id)
    assert after.drop_columns("labelled_at") == before.drop_columns("labelled_at")
    assert set(after["labelled_at"].to_pylist()) == {NOON + timedelta(hours=1)}


def names(output: Store, kind: str, plan: RunPlan) -> list[str]:
    return list(output.list(f"{kind}/run_id={plan.run_id}"))


def test_file_names_come_from_the_plan(output: Store) -> None:
    plan = open_run(output)
    commit_all(output, plan)
    for kind in ("images", "detections"):
        assert names(output, kind, plan) == [f"{kind}/run_id={plan.run_id}/shard-{n:05d}.parquet" for n in range(3)]


def test_detections_come_first(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    output = open_store(f"{faulty_bucket.uri}/out", {}, Patience(attempts=2, first_wait_s=0.01))
    plan = open_run(output)
    shard = read_shard(output, plan, 0)
    ledger = Ledger(output)
    faults.add(Fault("images/run_id", "status", times=2, method="PUT"))
    with pytest.raises(StorageError, match="images/run_id"):
        ledger.commit(plan, shard, outcomes(shard))
    assert ledger.committed(plan.run_id) == set(), "detections without images: the shard is open"
    assert len(names(output, "detections", plan)) == 1
    ledger.commit(plan, shard, outcomes(shard))
    assert ledger.committed(plan.run_id) == {0}
    written = [seen.key.split("/")[1] for seen in faults.requests if seen.method == "PUT" and "shard-" in seen.key]
    assert written == ["detections", "images", "images", "detections", "images"]


def test_foreign_files_are_no_commits(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    plan = open_run(output)
    commit_all(output, plan)
    folder = tmp_path / "images" / f"run_id={plan.run_id}"
    for name in (".abc.tmp", ".shard-00007.parquet", "shard-00007.parquet.tmp", "shard-7.parquet", "_SUCCESS", "a.txt"):
        (folder / name).write_bytes(b"")
    (folder / "shard-00008.parquet").mkdir()
    assert Ledger(output).committed(plan.run_id) == {0, 1, 2}
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".gitkeep").write_bytes(b"")
    (tmp_path / "runs" / "notes.parquet").write_bytes(b"")
    (tmp_path / "_plans" / "scratch").mkdir()
    (tmp_path / "_plans" / "20260101T000000Z-00000000").mkdir()
    assert Ledger(output).run_rows() == []
    assert Ledger(output).open_runs() == [plan], "a folder without plan.json was never opened"
    assert "20260101T000000Z-00000000" in Ledger(output).run_ids(), "but its id is taken"


def test_outcomes_must_cover_the_shard(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    plan = open_run(output)
    shard = read_shard(output, plan, 0)
    with pytest.raises(ValueError, match="expected one outcome for each of 8 images"):
        Ledger(output).commit(plan, shard, outcomes(shard)[:-1])
    assert not (tmp_path / "detections").exists()


def test_only_a_whole_run_closes_as_complete(output: Store) -> None:
    plan = open_run(output)
    ledger = Ledger(output)
    shard = read_shard(output, plan, 1)
    ledger.commit(plan, shard, outcomes(shard))
    with pytest.raises(OpenShardsError, match="2 shards are open, first 0"):
        ledger.close(ledger.closing_row(plan, "complete", 1.0))
    partial = ledger.closing_row(plan, "partial", 1.0)
    ledger.close(partial)
    assert (ledger.open_runs(), ledger.run_rows(), ledger.complete_runs()) == ([], [partial], [])
    assert partial.num_labelled + partial.num_failed == 8


def test_closing_twice_keeps_the_first_row(output: Store) -> None:
    plan = open_run(output)
    row = finish(output, plan)
    Ledger(output).close(replace(row, images_per_second=99.0))
    assert Ledger(output).run_rows() == [row]


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    made: list[str] = []
    for _ in range(12):
        run_id = new_run_id(NOON, made)
        made.append(run_id)
        finish(output, open_run(output, header(run_id), images=len(made)))
    rows = Ledger(output).run_rows()
    assert [row.run_id for row in rows] == made[::-1] == sorted(made, reverse=True)
    assert len(list(Ledger(output).known_images(made))) == sum(read_plan(output, run_id).num_shards for run_id in made)


def test_the_next_run_plans_what_is_new_changed_or_failed(output: Store) -> None:
    first = open_run(output)
    finish(output, first)
    head = header("20260518T120000Z-00000000", previous_run_id=first.run_id)
    images = [replace(ref, etag="changed") if n == 0 else ref for n, ref in enumerate(refs(IMAGES + 2))]
    ledger = Ledger(output)
    known = ledger.known_images([first.run_id])
    plan = make_plan(output, head, listing(images), known, PlanConfig())
    assert (plan.counts.num_new, plan.counts.num_changed, plan.counts.num_failed_retry) == (2, 1, 3)
    assert plan.counts.num_unchanged == IMAGES - 4
    row = finish(output, plan)
    assert row.num_listed == row.num_labelled + row.num_failed + row.num_unchanged == IMAGES + 2, "law 1"
    assert row.previous_run_id == first.run_id
    third = open_run(output, header("20260519T120000Z-00000000"))
    assert third.counts.num_changed == 1, "the latest row of an image counts: its etag changed back"


def test_a_run_with_nothing_to_do_closes_at_once(output: Store) -> None:
    images = [labelled(ref, [0.9]) for ref in refs(PER_SHARD)]
    first = open_run(output, images=PER_SHARD)
    ledger = Ledger(output)
    ledger.commit(first, read_shard(output, first, 0), images)
    ledger.close(ledger.closing_row(first, "complete", 1.0))
    second = open_run(output, header("20260518T120000Z-00000000"), images=PER_SHARD)
    assert second.num_shards == 0
    ledger.close(ledger.closing_row(second, "complete", 0.0))
    row = ledger.run_rows()[0]
    assert (row.run_id, row.status, row.num_unchanged, row.num_labelled) == (second.run_id, "complete", PER_SHARD, 0)


def rewrite_run(path: Path) -> None:
    whole = pq.read_table(path)
    metadata = whole.schema.metadata | {b"batchdet.schema_version": b"2"}
    pq.write_table(whole.replace_schema_metadata(metadata), path)


def rewrite_plan(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))


@pytest.mark.parametrize(
    ("pattern", "rewrite", "ask"),
    [
        ("runs/*.parquet", rewrite_run, lambda ledger, run_id: ledger.run_rows()),
        ("runs/*.parquet", rewrite_run, lambda ledger, run_id: ledger.complete_runs()),
        ("images/*/*.parquet", rewrite_run, lambda ledger, run_id: list(ledger.known_images([run_id]))),
        ("images/*/*.parquet", rewrite_run, lambda ledger, run_id: ledger.counts(run_id)),
        ("_plans/*/plan.json", rewrite_plan, lambda ledger, run_id: ledger.open_runs()),
    ],
)
def test_another_schema_version_is_refused(
    tmp_path: Path, pattern: str, rewrite: Callable[[Path], None], ask: Callable[[Ledger, str], object]
) -> None:
    output = open_store(str(tmp_path), {})
    plan = open_run(output)
    commit_all(output, plan)
    if "_plans" not in pattern:
        finish(output, plan)
    path = next(tmp_path.glob(pattern))
    rewrite(path)
    with pytest.raises(SchemaVersionError, match="has schema version 2, this batchdet writes 1") as caught:
        ask(Ledger(output), plan.run_id)
    assert str(path) in str(caught.value)


def test_known_images_are_the_rows_of_images(output: Store) -> None:
    plan = open_run(output)
    finish(output, plan)
    known = pa.Table.from_batches(Ledger(output).known_images([plan.run_id]))
    images = table(output, "images", plan.run_id)
    columns = ["image_uri", "etag", "size_bytes", "last_modified", "status"]
    assert known.select(columns).to_pylist() == images.select(columns).to_pylist()
    assert set(known["run_id"].to_pylist()) == {plan.run_id}


def test_the_runs_table_holds_the_row(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    plan = open_run(output, header(previous_run_id=None, versions='{"torch":"2.15"}'))
    row = finish(output, plan)
    read = pq.read_table(tmp_path / "runs" / f"{plan.run_id}.parquet")
    assert read.schema.remove_metadata() == RUNS
    (values,) = read.to_pylist()
    assert values == {name: getattr(row, name) for name in RUNS.names} | {"categories": list(CATEGORIES)}
    assert values["started_at"].astimezone(UTC) == NOON


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Two complete runs on disk."""
    output = open_store(str(tmp_path), {})
    finish(output, open_run(output))
    finish(output, open_run(output, header("20260518T120000Z-00000000"), images=IMAGES + 9))
    return tmp_path


EXPECTED = {"images": 22 + 3 + 9, "labelled": 19 + 11, "runs": 2}


def test_duckdb_reads_both_tables(written: Path) -> None:
    with duckdb.connect() as connection:
        for name in ("images", "detections"):
            files = f"read_parquet('{written}/{name}/*/*.parquet', hive_partitioning = true)"
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {files}")
        images = connection.execute(
            "SELECT count(*), count_if(status = 'labelled'), count(DISTINCT run_id), sum(num_candidates) FROM images"
        ).fetchall()
        joined = connection.execute(
            "SELECT count(*), bool_and(image_width = width) FROM detections JOIN images USING (run_id, image_uri)"
        ).fetchall()
        categories = connection.execute("SELECT DISTINCT category FROM detections ORDER BY 1").fetchall()
    (count,) = {row[3] for row in images}
    assert images == [(EXPECTED["images"], EXPECTED["labelled"], EXPECTED["runs"], count)]
    assert joined == [(count, True)]
    assert categories == [("cat",), ("dog",)]


def test_polars_reads_both_tables(written: Path) -> None:
    images = pl.read_parquet(f"{written}/images/**/*.parquet", hive_partitioning=True)
    detections = pl.read_parquet(f"{written}/detections/**/*.parquet", hive_partitioning=True)
    assert images.height == EXPECTED["images"]
    assert images["run_id"].n_unique() == EXPECTED["runs"]
    assert detections.height == images["num_candidates"].sum()
    assert set(detections["category"].cast(pl.String).unique()) == {"cat", "dog"}
    joined = detections.join(images, on=["run_id", "image_uri"])
    assert joined.height == detections.height
    assert (joined["image_width"] == joined["width"]).all()


def test_pandas_reads_both_tables(written: Path) -> None:
    images = pd.read_parquet(written / "images")
    detections = pd.read_parquet(written / "detections")
    assert len(images) == EXPECTED["images"]
    assert images.run_id.nunique() == EXPECTED["runs"]
    assert len(detections) == images.num_candidates.sum()
    assert str(detections.category.dtype) == "category"
    assert detections.groupby(["run_id", "image_uri"], observed=True).detection_index.min().eq(0).all()
    runs = pd.read_parquet(written / "runs")
    assert runs.num_labelled.sum() == EXPECTED["labelled"]


def test_reports_count_what_was_committed(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    plan = open_run(output, images=4)
    shard = read_shard(output, plan, 0)
    a, b, c, d = shard.images
    made = [failed(d), labelled(c, [0.2]), labelled(b, []), labelled(a, [0.9, 0.4])]
    report = Ledger(output).commit(plan, shard, made)
    assert (report.num_labelled, report.num_empty, report.num_failed, report.num_detections) == (3, 2, 1, 1)
    assert report.failures == {"decode:truncated": 1}
    assert report.seconds["commit"] > 0
