"""An audit passes on what the ledger wrote and names every way of breaking it."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from batchdet.analysis.audit import audit_run
from batchdet.analysis.receipt import CHECKS, Receipt
from batchdet.config import PolicyConfig
from batchdet.errors import AuditError, OutputError
from batchdet.storage.filesystem import Store, open_store
from tests.analysis.outputs import Image, close, commit, open_run, whole_run
from tests.servers.s3 import Bucket

IMAGES = {
    "s3://b/a": Image(2, 1),
    "s3://b/b": Image(failure="truncated"),
    "s3://b/c d#é": Image(),
    "s3://b/e": Image(0, 3),
    "s3://b/f": Image(1, 0),
}


@pytest.fixture
def output(tmp_path: Path) -> Store:
    output = open_store(str(tmp_path / "it's [out]"), {})
    whole_run(output, 1, IMAGES)
    return output


def failed(receipt: Receipt) -> dict[str, str]:
    assert receipt.passed == all(check.passed for check in receipt.checks)
    return {check.name: check.finding for check in receipt.checks if not check.passed}


def test_a_whole_run_passes(output: Store) -> None:
    receipt = audit_run(output)
    receipt.require_passed()
    assert failed(receipt) == {}
    assert [check.name for check in receipt.checks] == list(CHECKS)
    assert (receipt.num_listed, receipt.num_labelled, receipt.num_failed, receipt.num_empty) == (5, 4, 1, 2)
    assert (receipt.num_detections, receipt.num_candidates, receipt.open_shards) == (3, 7, ())


def test_unchanged_images_are_accounted_for(output: Store) -> None:
    plan = open_run(output, 2, dict.fromkeys(IMAGES, "e"))
    commit(output, plan, IMAGES)
    close(output, plan)
    receipt = audit_run(output)
    assert failed(receipt) == {}
    assert (receipt.num_listed, receipt.num_unchanged, receipt.num_failed) == (5, 4, 1)


def test_a_run_of_nothing_passes(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    close(output, open_run(output, 1, {}))
    assert failed(audit_run(output)) == {}


def test_an_open_run_names_its_open_shards(output: Store) -> None:
    plan = open_run(output, 2, dict.fromkeys(IMAGES, "new"))
    commit(output, plan, IMAGES, [1])
    receipt = audit_run(output)
    assert receipt.open_shards == (0, 2)
    assert "1 of 3 shards committed; open: 0, 2" in failed(receipt)["run is complete"]
    with pytest.raises(AuditError, match=plan.run_id):
        receipt.require_passed()
    assert audit_run(output, receipt.run_id).open_shards == (0, 2)
    assert audit_run(output, audit_run(output).run_id) == receipt


def test_a_run_closed_as_partial_fails(output: Store) -> None:
    plan = open_run(output, 2, dict.fromkeys(IMAGES, "new"))
    commit(output, plan, IMAGES, [0])
    close(output, plan, "partial")
    said = failed(audit_run(output))["run is complete"]
    assert said.startswith("it is stopped, and `batchdet label` goes on with it: closed as partial with 1 of 3 shards")
    assert said.endswith("the newest complete run is 20260302T120000Z-00000001")


def shard(output: Store, table: str, number: int = 0) -> Path:
    (path,) = Path(output.root).glob(f"{table}/run_id=*/shard-{number:05d}.parquet")
    return path


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.ParquetFile(path).read()
    changed = change(table)
    pq.write_table(changed.replace_schema_metadata(changed.schema.metadata or table.schema.metadata), path)


def put(name: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    """Set one value."""

    def change(table: pa.Table) -> pa.Table:
        field = table.schema.field(name)
        plain = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        values = table.column(name).to_pylist()
        values[row] = value
        column = pa.array(values, plain).cast(field.type)
        return table.set_column(table.schema.get_field_index(name), field, column)

    return change


def stamp(key: bytes, value: bytes) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.replace_schema_metadata({**table.schema.metadata, key: value})


def twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table.slice(0, 1)])


TAMPERINGS = [
    ("images", twice, "every image once", "s3://b/a has two rows"),
    ("images", lambda table: table.slice(1), "every image once", "s3://b/a has no row"),
    ("images", put("image_uri", 0, "s3://b/zzz"), "every image once", "s3://b/zzz is not in this shard"),
    ("images", put("shard_id", 0, 7), "rows carry their shard_id", "s3://b/a has another shard_id than 0"),
    ("images", put("status", 0, "deleted"), "statuses are sound", "s3://b/a is deleted"),
    ("images", put("num_candidates", 0, None), "statuses are sound", "s3://b/a (labelled) lacks its counts"),
    ("images", put("failure_code", 1, None), "statuses are sound", "s3://b/b (failed) lacks failure_code"),
    ("images", put("failure_reason", 1, None), "statuses are sound", "s3://b/b (failed) lacks failure_reason"),
    ("images", put("failure_stage", 1, "paint"), "statuses are sound", "s3://b/b (failed) has an unknown"),
    ("images", put("num_detections", 1, 0), "statuses are sound", "s3://b/b (failed) has a num_detections"),
    ("images", put("failure_code", 0, "x"), "statuses are sound", "s3://b/a (labelled) has a failure_code"),
    ("images", put("width", 0, None), "statuses are sound", "s3://b/a (labelled) lacks width"),
    ("images", put("height", 0, 0), "statuses are sound", "s3://b/a has a height under 1"),
    ("images", put("content_digest", 0, None), "statuses are sound", "s3://b/a (labelled) lacks content_digest"),
    ("images", put("decoder", 0, None), "statuses are sound", "s3://b/a (labelled) lacks decoder"),
    ("images", put("hit_detection_cap", 0, None), "statuses are sound", "s3://b/a (labelled) lacks its counts"),
    ("images", put("labelled_at", 0, None), "statuses are sound", "s3://b/a lacks labelled_at"),
    ("images", put("etag", 0, "zz"), "listed facts are the plan's", "s3://b/a has another etag"),
    ("images", put("etag", 0, None), "listed facts are the plan's", "s3://b/a has another etag"),
    ("images", put("size_bytes", 1, 11), "listed facts are the plan's", "s3://b/b has another size_bytes"),
    ("images", put("last_modified", 0, None), "listed facts are the plan's", "s3://b/a has another last_modified"),
    ("images", lambda table: table.take([1, 0]), "images are in order", "s3://b/a lies after a greater image_uri"),
    ("images", put("num_detections", 0, 3), "counts are the detections'", "s3://b/a has 3 stored and 2 accepted"),
    ("images", put("num_candidates", 0, 2), "counts are the detections'", "s3://b/a"),
    (
        "images",
        stamp(b"batchdet.model_digest", b"other"),
        "files carry the run's stamp",
        "batchdet.model_digest is other",
    ),
    ("images", stamp(b"batchdet.policy_digest", b"other"), "files carry the run's stamp", "policy_digest"),
    ("images", stamp(b"batchdet.run_id", b"other"), "files carry the run's stamp", "run_id"),
    ("images", stamp(b"batchdet.schema_version", b"9"), "files carry the run's stamp", "schema_version is 9, not 1"),
    ("images", lambda table: table.drop_columns(["etag"]), "columns are the schema's", "no column etag"),
    ("detections", twice, "detections are in order", "row 3, of s3://b/a"),
    (
        "detections",
        lambda table: table.slice(0, 2),
        "counts are the detections'",
        "s3://b/a has 2 stored and 2 accepted",
    ),
    ("detections", put("accepted", 0, False), "counts are the detections'", "1 accepted"),
    ("detections", put("image_uri", 2, "s3://b/b"), "detections belong to labelled images", "s3://b/b is failed"),
    ("detections", put("image_uri", 2, "s3://b/x"), "detections belong to labelled images", "s3://b/x is no image"),
    ("detections", put("detection_index", 1, 5), "detections are in order", "row 1, of s3://b/a"),
    ("detections", put("score", 2, 0.95), "detections are in order", "row 2, of s3://b/a"),
    ("detections", put("score", 0, None), "columns are the schema's", "a detection with a null"),
    ("detections", put("score", 0, 7.0), "scores are over the floor", "row 0, of s3://b/a"),
    ("detections", put("score", 2, 0.04), "scores are over the floor", "row 2, of s3://b/a"),
    ("detections", put("score", 0, math.nan), "scores are over the floor", "row 0, of s3://b/a"),
    ("detections", put("label", 0, 77), "labels are the model's", "row 0, of s3://b/a: a label outside 1..3"),
    ("detections", put("label", 0, 0), "labels are the model's", "row 0, of s3://b/a: a label outside 1..3"),
    ("detections", put("label", 0, 2), "labels are the model's", "row 0, of s3://b/a: the category"),
    ("detections", put("category", 1, "cat"), "labels are the model's", "row 1, of s3://b/a: the category"),
    ("detections", put("shard_id", 1, 9), "rows carry their shard_id", "row 1, of s3://b/a"),
    ("detections", put("xmin", 0, -999), "boxes lie in their image", "row 0, of s3://b/a: a box that"),
    ("detections", put("xmin", 0, 30.1), "boxes lie in their image", "row 0, of s3://b/a: a box that"),
    ("detections", put("ymin", 0, 40.1), "boxes lie in their image", "row 0, of s3://b/a: a box that"),
    ("detections", put("xmax", 0, 100.1), "boxes lie in their image", "row 0, of s3://b/a: a box that"),
    ("detections", put("ymax", 0, 80.1), "boxes lie in their image", "row 0, of s3://b/a: a box that"),
    ("detections", put("ymax", 0, math.inf), "boxes lie in their image", "row 0, of s3://b/a: a box that"),
    ("detections", put("xmin", 0, math.nan), "boxes lie in their image", "row 0, of s3://b/a: a box that"),
    ("detections", put("image_width", 0, 101), "boxes lie in their image", "row 0, of s3://b/a: another image size"),
    ("detections", put("image_height", 2, 81), "boxes lie in their image", "row 2, of s3://b/a: another image size"),
    ("detections", put("accepted", 2, True), "accepted ones pass the policy", "row 2, of s3://b/a"),
    ("detections", lambda table: table.slice(0, 0), "counts are the detections'", "0 stored"),
]


@pytest.mark.parametrize(("table", "change", "check", "finding"), TAMPERINGS)
def test_a_changed_file_is_found(
    output: Store, table: str, change: Callable[[pa.Table], pa.Table], check: str, finding: str
) -> None:
    path = shard(output, table)
    rewrite(path, change)
    found = failed(audit_run(output))
    assert finding in found[check]
    assert path.name in found[check]


def test_rows_of_an_image_that_lie_apart_are_found(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    whole_run(output, 1, {"s3://b/a": Image(2), "s3://b/b": Image(1)})
    rewrite(shard(output, "detections"), lambda table: table.take([0, 2, 1]))
    assert "lie apart" in failed(audit_run(output))["detections are in order"]


def test_images_of_detections_in_another_order_are_found(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    whole_run(output, 1, {"s3://b/a": Image(1), "s3://b/b": Image(1)})
    rewrite(shard(output, "detections"), lambda table: table.take([1, 0]))
    assert "row 1, of s3://b/a: after a greater image_uri" in failed(audit_run(output))["detections are in order"]


def test_every_wrong_row_counts(output: Store) -> None:
    rewrite(shard(output, "detections"), lambda table: put("label", 0, 9)(put("label", 1, 9)(table)))
    assert "(and 1 more)" in failed(audit_run(output))["labels are the model's"]


@pytest.mark.parametrize(
    ("policy", "passes"),
    [
        ({"score_threshold": 0.6}, True),
        ({"score_threshold": 0.95, "score_thresholds": {"cat": 0.9, "dog": 0.6}}, True),
        ({"score_thresholds": {"dog": 0.61}}, False),
        ({"min_box_side": 29}, True),
        ({"min_box_side": 29.5}, False),
        ({"max_detections": 1}, True),
    ],
)
def test_the_runs_own_policy_is_asked(tmp_path: Path, policy: dict[str, Any], passes: bool) -> None:
    output = open_store(str(tmp_path), {})
    plan = open_run(output, 1, {"s3://b/a": "e"}, policy=PolicyConfig(**policy))
    commit(output, plan, {"s3://b/a": Image(2, 1)})
    close(output, plan)
    found = failed(audit_run(output))
    assert (set(found) == set()) if passes else (set(found) == {"accepted ones pass the policy"})


def test_a_box_may_leave_its_image_by_a_rounding(output: Store) -> None:
    rewrite(shard(output, "detections"), put("xmax", 0, np.nextafter(np.float32(100), np.float32(101)).item()))
    assert failed(audit_run(output)) == {}


def test_a_plan_that_is_gone_is_said(output: Store) -> None:
    (plan,) = Path(output.root).glob("_plans/*")
    (plan / "manifest-00000.parquet").write_bytes(b"PAR1 no")
    assert "manifest-00000.parquet, shard 0: " in failed(audit_run(output))["the plan is whole"]
    (plan / "manifest-00000.parquet").unlink()
    assert "manifest-00000.parquet is missing" in failed(audit_run(output))["the plan is whole"]
    shutil.rmtree(plan)
    with pytest.raises(AuditError, match=r"run 20260302T120000Z-00000001: .*plan.json is gone"):
        audit_run(output)


def test_a_plan_whose_policy_is_damaged_is_said(output: Store) -> None:
    (path,) = Path(output.root).glob("_plans/*/plan.json")
    path.write_text(path.read_text().replace("score_floor", "floor"))
    with pytest.raises(OutputError, match=r"plan.json is damaged: 'score_floor'"):
        audit_run(output)


def test_missing_extra_and_damaged_files_are_found(output: Store) -> None:
    extra = shard(output, "images").with_name("shard-00009.parquet")
    shutil.copy(shard(output, "images"), extra)
    assert failed(audit_run(output))["shard files are the plan's"].endswith("shard-00009.parquet is not in the plan")
    extra.unlink()
    shard(output, "detections", 2).unlink()
    assert "shard-00002.parquet is missing" in failed(audit_run(output))["shard files are the plan's"]
    shard(output, "images", 1).write_bytes(b"PAR1 no")
    found = failed(audit_run(output))
    assert "shard-00001.parquet is not Parquet" in found["columns are the schema's"]
    shard(output, "images", 1).unlink()
    found = failed(audit_run(output))
    assert (
        "images/run_id=20260302T120000Z-00000001/shard-00001.parquet is missing" in found["shard files are the plan's"]
    )
    assert "listed = labelled + failed + unchanged" in found


@pytest.mark.parametrize("name", ["num_listed", "num_labelled", "num_empty", "num_failed", "num_detections"])
def test_a_run_row_that_disagrees_is_found(output: Store, name: str) -> None:
    (path,) = Path(output.root).glob("runs/*.parquet")
    rewrite(path, lambda table: put(name, 0, pc.add(table.column(name)[0], 1).as_py())(table))
    assert f"{name} is" in failed(audit_run(output))["runs row equals the recount"]


def test_an_unknown_run_is_said(output: Store) -> None:
    with pytest.raises(OutputError, match=r"--run nope: .* newest is"):
        audit_run(output, "nope")


def test_an_output_on_s3(moto_bucket: Bucket) -> None:
    output = open_store(f"s3://{moto_bucket.name}/it's out", {})
    whole_run(output, 1, IMAGES)
    assert failed(audit_run(output)) == {}
