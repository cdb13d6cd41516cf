"""Comparisons of runs against a plain-Python reading of the same history."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchdet.analysis import changes as changes_module
from batchdet.analysis import states
from batchdet.analysis.box_changes import BOX_CHANGES, BOX_SCHEMA, IMAGE_SCHEMA
from batchdet.analysis.changes import ChangeBatch, compare_runs, write_changes
from batchdet.analysis.config import AlarmConfig, CompareConfig, DiffConfig
from batchdet.analysis.states import IMAGE_CHANGES
from batchdet.compaction import compact
from batchdet.config import PolicyConfig
from batchdet.errors import ConfigError, OutputError, StorageError
from batchdet.records import FailedImage, ImageFacts, ImageOutcome, ImageRef, LabelledImage
from batchdet.refiltering import refilter
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import RunPlan
from tests.analysis.matching_oracle import Box, objects
from tests.analysis.outputs import CATEGORIES, Image, close, commit, open_run, run_id, whole_run
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import Bucket

CONFIG = DiffConfig()


@dataclass(frozen=True)
class Picture:
    """What a run is to say of an image: its boxes, that it failed, or that it is gone."""

    boxes: tuple[Box, ...] = ()
    status: str = "labelled"
    content: str = "sha256:1"
    rejected: int = 0

    def outcome(self, ref: ImageRef) -> ImageOutcome:
        if self.status != "labelled":
            return FailedImage(ref, "decode", "corrupt", "made to fail")
        count = len(self.boxes) + self.rejected
        corners = [*(box.corners for box in self.boxes), *[(0.0, 0.0, 9.0, 9.0)] * self.rejected]
        return LabelledImage(
            ref,
            ImageFacts(width=100, height=80, content_digest=self.content, decoder="none", size_bytes=10),
            boxes=np.array(corners, np.float32).reshape(-1, 4),
            scores=np.array([*(box.score for box in self.boxes), *[0.0625] * self.rejected], np.float32),
            labels=np.array([*(CATEGORIES.index(box.category) for box in self.boxes), *[1] * self.rejected], np.int64),
            accepted=np.arange(count) < len(self.boxes),
            hit_detection_cap=False,
        )


def night(output: Store, number: int, pictures: Mapping[str, Picture]) -> RunPlan:
    """A complete run with a row for every picture."""
    plan = open_run(output, number, dict.fromkeys(pictures, str(number)))
    commit(output, plan, pictures)  # type: ignore[arg-type]
    gone = [uri for uri, picture in pictures.items() if picture.status == "deleted"]
    for name in output.list(f"images/run_id={plan.run_id}"):
        mark_deleted(output, name, gone)
    close(output, plan)
    return plan


def mark_deleted(output: Store, name: str, uris: Sequence[str]) -> None:
    """Make rows of an images file those of deleted images."""
    table = pq.read_table(pa.BufferReader(output.read_bytes(name)))
    listed = ("image_uri", "etag", "size_bytes", "last_modified", "shard_id", "labelled_at")
    rows = [
        {**{key: value for key, value in row.items() if key in listed}, "status": "deleted"}
        if row["image_uri"] in uris
        else row
        for row in table.to_pylist()
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), sink)
    output.write_bytes(name, sink.getvalue().to_pybytes())


def compare(
    output: Store, before: str | None, after: str, config: DiffConfig = CONFIG
) -> tuple[dict[str, Any], Any, Any]:
    """The summary, the rows of images and those of boxes."""
    images, boxes = [], []

    def take(batch: ChangeBatch) -> None:
        images.append(batch.images)
        boxes.append(batch.boxes)

    summary = compare_runs(output, before, after, config, take)
    tables = (
        pa.concat_tables([schema.empty_table(), *parts])
        for schema, parts in ((IMAGE_SCHEMA, images), (BOX_SCHEMA, boxes))
    )
    return (summary, *(table.to_pylist() for table in tables))


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "it's [out] *"), {})


CAT = Box((1, 1, 31, 31), 0.875, "cat")
DOG = Box((50, 10, 80, 40), 0.75, "dog")


def test_a_night_of_everything(output: Store) -> None:
    night(
        output,
        1,
        {
            "s3://b/failed twice": Picture(status="failed"),
            "s3://b/gone": Picture((CAT,)),
            "s3://b/moved": Picture((CAT, DOG), rejected=2),
            "s3://b/recovered": Picture(status="failed"),
            "s3://b/still there": Picture((CAT, CAT, DOG)),
            "s3://b/turned bad": Picture((CAT,)),
        },
    )
    night(
        output,
        2,
        {
            "s3://b/failed twice": Picture(status="failed"),
            "s3://b/gone": Picture(status="deleted"),
            "s3://b/moved": Picture(
                (Box((6, 1, 36, 31), 0.875, "cat"), Box(DOG.corners, 0.75, "it's"), DOG), rejected=1
            ),
            "s3://b/never had": Picture(status="deleted"),
            "s3://b/new": Picture((DOG,)),
            "s3://b/new and bad": Picture(status="failed"),
            "s3://b/recovered": Picture(),
            "s3://b/turned bad": Picture(status="failed"),
        },
    )
    summary, images, boxes = compare(output, run_id(1), run_id(2))
    assert [(row["image_uri"][7:], row["change"], row["status_before"], row["status_after"]) for row in images] == [
        ("failed twice", "still_failed", "failed", "failed"),
        ("gone", "deleted", "labelled", None),
        ("moved", "relabelled", "labelled", "labelled"),
        ("never had", "never_seen", None, None),
        ("new", "new", None, "labelled"),
        ("new and bad", "new_failed", None, "failed"),
        ("recovered", "recovered", "failed", "labelled"),
        ("turned bad", "newly_failed", "labelled", "failed"),
    ]
    assert [
        (row["image_uri"][7:], row["image_change"], row["change"], row["category_before"], row["category_after"])
        for row in boxes
    ] == [
        ("gone", "deleted", "removed", "cat", None),
        ("moved", "relabelled", "moved", "cat", "cat"),
        ("moved", "relabelled", "added", None, "it's"),
        ("new", "new", "added", None, "dog"),
        ("turned bad", "newly_failed", "removed", "cat", None),
    ]
    assert (boxes[1]["xmin_before"], boxes[1]["xmin_after"]) == (1, 6)
    assert boxes[1]["iou"] == pytest.approx(25 / 35)
    assert (boxes[0]["run_before"], boxes[0]["run_after"]) == (run_id(1), run_id(2))
    assert summary["images"] == dict.fromkeys(IMAGE_CHANGES, 1) | {"same_content": 1}
    assert summary["failures"] == {"tried": 4, "failed": 2, "failure_rate": 0.5, "codes": {"decode:corrupt": 2}}
    assert summary["deleted_fraction"] == pytest.approx(1 / 6)
    assert summary["state"] == {
        "before": {"images": 6, "failed": 2, "detections": 7, "failure_rate": 2 / 6},
        "after": {"images": 7, "failed": 3, "detections": 7, "failure_rate": 3 / 7},
    }
    assert {kind: summary["changes"][kind] for kind in BOX_CHANGES} == {
        "added": 2,
        "removed": 2,
        "moved": 1,
        "rescored": 0,
        "reclassed": 0,
        "unchanged": 1,
    }
    assert (summary["relabelled"]["churn"], summary["same_content"]["objects"]) == (1 / 3, 3)
    assert summary["categories"]["it's"]["churn"] == 1
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_a_reclassed_object_counts_for_both_categories(output: Store) -> None:
    night(output, 1, {"s3://b/a": Picture((CAT, DOG))})
    night(output, 2, {"s3://b/a": Picture((Box(CAT.corners, 0.875, "dog"), DOG))})
    summary, _, boxes = compare(output, run_id(1), run_id(2))
    assert [(row["change"], row["category_before"], row["category_after"]) for row in boxes] == [
        ("reclassed", "cat", "dog")
    ]
    cat, dog = summary["categories"]["cat"], summary["categories"]["dog"]
    assert (cat["reclassed_from"], cat["reclassed_to"], cat["churn"]) == (1, 0, 1)
    assert (dog["reclassed_from"], dog["reclassed_to"], dog["churn"]) == (0, 1, 0.5)
    assert summary["relabelled"]["churn"] == 0.5


def test_other_bytes_are_no_churn_of_the_model(output: Store) -> None:
    night(output, 1, {"s3://b/a": Picture((CAT,)), "s3://b/b": Picture((CAT,))})
    night(output, 2, {"s3://b/a": Picture((DOG,), content="sha256:2"), "s3://b/b": Picture((CAT,))})
    summary, images, _ = compare(output, run_id(1), run_id(2))
    assert [row["same_content"] for row in images] == [False, True]
    assert (summary["relabelled"]["churn"], summary["same_content"]["churn"]) == (2 / 3, 0)


def test_only_complete_runs_count_and_the_latest_row_wins(output: Store) -> None:
    night(output, 1, {"s3://b/a": Picture((CAT,)), "s3://b/b": Picture((CAT,))})
    night(output, 2, {"s3://b/a": Picture((DOG,))})
    partial = open_run(output, 3, {"s3://b/a": "3", "s3://b/c": "3"}, images_per_shard=1)
    commit(output, partial, {"s3://b/a": Image(3)}, [0])
    close(output, partial, "partial")
    night(output, 4, {"s3://b/a": Picture((CAT,))})
    summary, images, boxes = compare(output, run_id(1), run_id(4))
    assert summary["later_runs"] == [run_id(2), run_id(4)]
    assert [(row["image_uri"], row["run_before"], row["run_after"], row["unchanged"]) for row in images] == [
        ("s3://b/a", run_id(1), run_id(4), 1)
    ]
    assert boxes == []


def test_against_nothing_all_is_new(output: Store) -> None:
    night(output, 1, {"s3://b/a": Picture((CAT,)), "s3://b/b": Picture(status="failed")})
    summary, images, boxes = compare(output, None, run_id(1))
    assert summary["run_before"] is None
    assert [row["change"] for row in images] == ["new", "new_failed"]
    assert [row["change"] for row in boxes] == ["added"]
    assert summary["deleted_fraction"] is None
    assert summary["state"]["before"]["images"] == 0


def test_runs_without_a_difference(output: Store) -> None:
    night(output, 1, {"s3://b/a": Picture((CAT,))})
    close(output, open_run(output, 2, {}))
    summary, images, boxes = compare(output, run_id(1), run_id(2), DiffConfig(alarms=AlarmConfig()))
    assert (images, boxes, summary["alarms"]) == ([], [], [])
    assert (summary["changes"]["churn"], summary["failures"]["failure_rate"]) == (None, None)
    assert summary["state"]["before"] == summary["state"]["after"]


def test_other_columns_and_another_model_change_nothing(output: Store) -> None:
    night(output, 1, {"s3://b/a": Picture((CAT,))})
    for name in output.list(f"images/run_id={run_id(1)}"):
        table = pq.read_table(pa.BufferReader(output.read_bytes(name)))
        sink = pa.BufferOutputStream()
        pq.write_table(table.append_column("reused_from", pa.nulls(len(table), pa.string())), sink)
        output.write_bytes(name, sink.getvalue().to_pybytes())
    night(output, 2, {"s3://b/a": Picture((CAT,))})
    _, images, _ = compare(output, run_id(1), run_id(2))
    assert [row["unchanged"] for row in images] == [1]


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (run_id(1), run_id(1), "is the same run twice"),
        (run_id(2), run_id(1), "is later than the second run; swap them"),
        ("x", run_id(1), "run x: .* has no such run; newest is"),
        (run_id(1), run_id(3), "is partial: readers see complete runs only"),
        (run_id(1), run_id(4), "is open: readers see complete runs only"),
    ],
)
def test_runs_that_cannot_be_compared(output: Store, before: str, after: str, says: str) -> None:
    night(output, 1, {"s3://b/a": Picture()})
    night(output, 2, {"s3://b/a": Picture()})
    close(output, open_run(output, 3, {"s3://b/a": "3"}), "partial")
    open_run(output, 4, {"s3://b/a": "4"})
    target = open_store(output.child_uri("kept"), {})
    target.write_bytes("summary.json", b"{}")
    with pytest.raises(ConfigError if after == run_id(1) and before != "x" else OutputError, match=says):
        write_changes(output, before, after, CONFIG, target)
    assert target.exists("summary.json")


def test_a_damaged_file_is_named(output: Store) -> None:
    night(output, 1, {"s3://b/a": Picture((CAT,))})
    night(output, 2, {"s3://b/a": Picture((CAT,))})
    name = f"detections/run_id={run_id(2)}/shard-00000.parquet"
    output.write_bytes(name, output.read_bytes(name)[:-9])
    with pytest.raises(OutputError, match=r"shard-00000\.parquet.*see batchdet audit"):
        compare(output, run_id(1), run_id(2))


def test_a_file_that_cannot_be_read_is_a_storage_error(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    output = open_store(f"s3://{faulty_bucket.name}/out", {})
    whole_run(output, 1, {"s3://b/a": Image(1)})
    whole_run(output, 2, {"s3://b/a": Image(2)}, etag="other")
    faults.add(Fault("detections/run_id", "status", status=403, code="AccessDenied", method="GET"))
    with pytest.raises(StorageError, match="detections/"):
        compare(output, run_id(1), run_id(2))


def test_changes_are_written_in_parts_and_replace_older_ones(output: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "FILE_ROWS", 3)
    monkeypatch.setattr(states, "BLOCK_IMAGES", 2)
    uris = [f"s3://b/{number}" for number in range(7)]
    night(output, 1, dict.fromkeys(uris, Picture((CAT,))))
    night(output, 2, dict.fromkeys(uris, Picture((DOG,))))
    target = open_store(output.child_uri("nights/2"), {})
    summary = write_changes(output, run_id(1), run_id(2), CONFIG, target)
    names = list(target.list(""))
    assert names == [
        *(f"changes-{n:05d}.parquet" for n in range(4)),
        "images-00000.parquet",
        "images-00001.parquet",
        "summary.json",
    ]
    assert json.loads(target.read_bytes("summary.json")) == summary
    parts = [pq.read_table(pa.BufferReader(target.read_bytes(name))) for name in names if name.startswith("changes")]
    assert all(part.schema.equals(BOX_SCHEMA) for part in parts)
    assert pa.concat_tables(parts).to_pylist() == compare(output, run_id(1), run_id(2))[2]
    night(output, 3, {uris[0]: Picture((DOG,))})
    write_changes(output, run_id(2), run_id(3), CONFIG, target)
    assert list(target.list("")) == ["changes-00000.parquet", "images-00000.parquet", "summary.json"]
    (row,) = pq.read_table(pa.BufferReader(target.read_bytes("images-00000.parquet"))).to_pylist()
    assert row["unchanged"] == 1


def test_alarms_are_part_of_the_summary(output: Store) -> None:
    night(output, 1, {"s3://b/a": Picture((CAT,))})
    night(output, 2, {"s3://b/a": Picture(status="failed")})
    summary, _, _ = compare(output, run_id(1), run_id(2), DiffConfig(alarms=AlarmConfig(min_images=1)))
    assert [alarm["name"] for alarm in summary["alarms"]] == ["max_failure_rate"]
    assert compare(output, run_id(1), run_id(2))[0]["alarms"] is None


URIS = [f"s3://b/{name}.jpg" for name in ("a", "b c", "d#e%", "é", "it's", "😀")]
SIDE = st.integers(0, 5).map(lambda side: side * 5.0)
DRAWN = st.builds(
    Box,
    st.tuples(SIDE, SIDE).map(lambda corner: (*corner, corner[0] + 20.0, corner[1] + 20.0)),
    st.sampled_from([0.5, 0.75, 0.875]),
    st.sampled_from(CATEGORIES[1:]),
)
PICTURE = st.builds(
    Picture,
    st.lists(DRAWN, max_size=4).map(lambda boxes: tuple(sorted(boxes, key=lambda box: -box.score))),
    st.sampled_from(["labelled", "labelled", "labelled", "failed", "deleted"]),
    st.sampled_from(["sha256:1", "sha256:2"]),
    st.integers(0, 2),
)
NIGHTS = st.lists(st.dictionaries(st.sampled_from(URIS), PICTURE, max_size=5), min_size=2, max_size=4)


def seen(nights: Sequence[Mapping[str, Picture]]) -> dict[str, Picture]:
    """What readers see after some nights."""
    last: dict[str, Picture] = {}
    for pictures in nights:
        last |= pictures
    return {uri: picture for uri, picture in last.items() if picture.status != "deleted"}


WORDS = {
    (None, None): "never_seen",
    (None, "labelled"): "new",
    (None, "failed"): "new_failed",
    ("labelled", None): "deleted",
    ("failed", None): "deleted",
    ("labelled", "labelled"): "relabelled",
    ("labelled", "failed"): "newly_failed",
    ("failed", "labelled"): "recovered",
    ("failed", "failed"): "still_failed",
}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nights=NIGHTS, data=st.data())
def test_comparisons_agree_with_dictionaries(
    tmp_path_factory: pytest.TempPathFactory, nights: list[dict[str, Picture]], data: st.DataObject
) -> None:
    output = open_store(str(tmp_path_factory.mktemp("history")), {})
    for number, pictures in enumerate(nights, 1):
        night(output, number, pictures)
    split = data.draw(st.integers(0, len(nights) - 1))
    config = DiffConfig(compare=CompareConfig(keep_unchanged=True, iou_threshold=0.4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "BLOCK_IMAGES", data.draw(st.sampled_from([1, 2, 100])))
        patch.setattr(states, "BLOCK_DETECTIONS", data.draw(st.sampled_from([1, 5, 1000])))
        summary, images, boxes = compare(output, run_id(split) if split else None, run_id(len(nights)), config)
    before, after = seen(nights[:split]), seen(nights)
    touched = sorted({uri for pictures in nights[split:] for uri in pictures}, key=str.encode)
    assert [row["image_uri"] for row in images] == touched
    want = []
    for row in images:
        old, new = before.get(row["image_uri"]), after.get(row["image_uri"])
        assert row["change"] == WORDS[old and old.status, new and new.status]
        sides = [picture.boxes if picture and picture.status == "labelled" else () for picture in (old, new)]
        want += [(row["image_uri"], *one) for one in objects(*sides, config.compare)]
    assert [
        (
            row["image_uri"],
            row["change"],
            *(
                -1 if row[f"detection_index_{side}"] is None else row[f"detection_index_{side}"]
                for side in ("before", "after")
            ),
        )
        for row in boxes
    ] == want
    assert {kind: summary["changes"][kind] for kind in BOX_CHANGES} == {
        kind: sum(one[1] == kind for one in want) for kind in BOX_CHANGES
    }
    for side, state in (("before", before), ("after", after)):
        labelled = [picture for picture in state.values() if picture.status == "labelled"]
        told = summary["state"][side]
        assert (told["images"], told["failed"]) == (len(state), len(state) - len(labelled))
        assert told["detections"] == sum(len(picture.boxes) for picture in labelled)


def test_what_a_compaction_copied_is_no_change_and_what_it_took_in_is(output: Store) -> None:
    night(output, 1, {uri: Picture((CAT,)) for uri in ("a", "b", "c")} | {"x": Picture(status="failed")})
    night(output, 2, {"a": Picture((DOG,)), "d": Picture((CAT,))})
    plain, *rows = compare(output, run_id(1), run_id(2))
    for history in ("current", "all"):
        compact(output, history, lambda line: None)  # type: ignore[arg-type]
    newest = Ledger(output).complete_runs()[0].run_id
    assert newest > run_id(2)
    summary, *rows_after = compare(output, run_id(1), newest)
    for name in ("images", "relabelled", "failures", "changes"):
        assert summary[name] == plain[name]
    assert [len(found) for found in rows_after] == [len(found) for found in rows]


def test_another_policy_is_a_change_however_compacted(output: Store) -> None:
    night(output, 1, {"a": Picture((CAT, DOG)), "b": Picture((CAT,))})
    refilter(output, PolicyConfig(score_threshold=0.8), lambda line: None, 1)
    (made,) = compact(output, "current", lambda line: None).runs
    summary, *_ = compare(output, run_id(1), made.run_id)
    assert (summary["images"]["relabelled"], summary["relabelled"]["removed"]) == (2, 1)
