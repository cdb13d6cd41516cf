"""A bucket that changes from run to run: nothing is labelled twice, and nothing stale or gone stays in sight."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from batchdet.errors import RunError, SourceError
from batchdet.labelling import Hardware, InlineRunner, RunContext
from batchdet.run import Manner, label_bucket, plan_bucket
from tests.contract.buckets import Bucket, MakeJob, fresh_scene, new_bucket, picture
from tests.contract.conftest import Recorder


@pytest.fixture
def bucket(make_job: MakeJob, tmp_path: Path) -> Bucket:
    return new_bucket(make_job, tmp_path)


def test_moved_and_copied_bytes_cost_no_forward_pass(bucket: Bucket) -> None:
    bucket.night()
    moved, copied = picture(bucket, 0), picture(bucket, 1)
    moved.rename(bucket.folder / f"moved{moved.suffix}")
    shutil.copy(copied, bucket.folder / f"copy{copied.suffix}")
    (bucket.folder / "another.jpg").write_bytes(fresh_scene(6))
    night = bucket.night()
    assert night.classes == {"new": 3, "unchanged": 7, "deleted": 1}
    assert (night.copied, night.detected, night.row.num_deleted) == (2, 1, 1)
    assert moved.name not in bucket.current()
    marks = bucket.ask("SELECT image_uri, copied_from FROM current_images WHERE copied_from IS NOT NULL")
    assert {row["copied_from"] for row in marks} == {moved.as_uri(), copied.as_uri()}
    names = "label, score, xmin, ymin, xmax, ymax, accepted, image_width"
    for row in marks:
        pair = (row["image_uri"], row["copied_from"])
        mine, theirs = (
            bucket.ask(f"SELECT {names} FROM all_detections WHERE image_uri = '{uri}' ORDER BY detection_index")
            for uri in pair
        )
        assert mine == theirs


def test_bytes_that_come_back_are_known_again(bucket: Bucket) -> None:
    bucket.night()
    gone = picture(bucket, 3)
    data = gone.read_bytes()
    gone.unlink()
    assert bucket.night().classes == {"unchanged": 7, "deleted": 1}
    assert gone.name not in bucket.current()
    gone.write_bytes(data)
    night = bucket.night()
    assert (night.classes, night.copied, night.detected) == ({"new": 1, "unchanged": 7}, 1, 0)
    assert bucket.current()[gone.name] == "labelled"


def test_bytes_that_come_back_under_another_policy_are_only_judged_again(bucket: Bucket) -> None:
    bucket.night()
    gone = {path: path.read_bytes() for path in (picture(bucket, number) for number in range(3))}
    for path in gone:
        path.unlink()
    bucket.night()
    for path, data in gone.items():
        path.write_bytes(data)
    night = bucket.night(**{"policy.score_threshold": 0.9})
    assert (night.classes, night.copied, night.detected) == ({"new": 3, "unchanged": 5}, 3, 0)
    rows = bucket.ask(f"SELECT score, accepted FROM all_detections WHERE run_id = '{night.row.run_id}'")
    assert any(0.5 <= row["score"] < 0.9 for row in rows)
    assert all(row["accepted"] == (row["score"] >= 0.9) for row in rows)
    assert night.row.num_detections == sum(row["accepted"] for row in rows) > 0


def test_copies_whose_source_is_gone_are_labelled_anew(bucket: Bucket) -> None:
    first = bucket.night()
    picture(bucket, 0).rename(bucket.folder / "moved.jpg")

    class Vandal(InlineRunner):
        def run(self, context: RunContext, shard_ids: Any, progress: Any) -> None:
            shutil.rmtree(bucket.output / f"detections/run_id={first.row.run_id}")
            super().run(context, shard_ids, progress)

    night = bucket.label(Vandal(Hardware("cpu", 1)))
    assert (night.copied, night.detected, night.row.num_failed) == (0, 1, 0)


def test_a_failing_image_is_tried_so_often_and_rests_until_its_bytes_change(bucket: Bucket) -> None:
    bad = bucket.folder / "bad.jpg"
    bad.write_bytes(fresh_scene(1)[:500])
    fields = {"plan.max_retries": 2}
    classes = [bucket.night(**fields).classes for _ in range(5)]
    retried = {"failed_retry": 1, "unchanged": 8}
    resting = {"unchanged": 9, "quarantined": 1}
    assert classes == [{"new": 9}, retried, retried, resting, resting]
    tries = bucket.ask("SELECT failed_runs FROM all_images WHERE status = 'failed' ORDER BY run_id")
    assert [row["failed_runs"] for row in tries] == [1, 2, 3]
    assert bucket.current()[bad.name] == "failed"
    bad.write_bytes(fresh_scene(9))
    assert bucket.night(**fields).classes == {"changed": 1, "unchanged": 8}
    assert bucket.current()[bad.name] == "labelled"


def test_labels_of_other_settings_are_stale(bucket: Bucket) -> None:
    bucket.night()
    assert bucket.night(**{"model.score_floor": 0.2}).classes == {"unchanged": 8}, "candidates over 0.05 hold them"
    assert bucket.night(**{"reading.decode": "fast", "plan.relabel_stale": False}).classes == {"unchanged": 8}
    (bucket.folder / "new.jpg").write_bytes(fresh_scene(7))
    fields = {"reading.decode": "fast"}
    assert plan_bucket(bucket.job(**fields), Recorder()).num_stale == 8
    night = bucket.night(**fields)
    assert (night.classes, night.detected) == ({"new": 1, "stale": 8}, 9)
    (first,) = bucket.ask(f"SELECT image_uri FROM all_images WHERE run_id = '{night.row.run_id}' AND shard_id = 0")
    assert first["image_uri"].endswith("new.jpg"), "what nobody has seen yet comes first"
    assert bucket.night(**fields).classes == {"unchanged": 9}


def test_a_listing_that_lacks_most_images_is_refused(bucket: Bucket) -> None:
    bucket.night()
    for number in range(5):
        picture(bucket, number).unlink()
    with pytest.raises(SourceError, match=r"5 of 8 known images are no longer listed.*--no-delete"):
        bucket.label()
    assert len(bucket.current()) == 8
    assert bucket.night(**{"plan.delete_missing": False}).classes == {"unchanged": 3}
    assert bucket.night(**{"plan.max_deleted_fraction": 0.7}).classes == {"unchanged": 3, "deleted": 5}
    assert len(bucket.current()) == 3


def test_a_manifest_is_taken_for_all_there_is_and_says_so(bucket: Bucket, tmp_path: Path) -> None:
    bucket.night()
    (bucket.folder / "new.jpg").write_bytes(fresh_scene(8))
    names = [picture(bucket, number) for number in range(5)] + [bucket.folder / "new.jpg"]
    manifest = tmp_path / "some.txt"
    manifest.write_text("".join(f"{path}\n" for path in names))
    partial = {"source": str(manifest)}
    wanted = (
        f"3 known images are not in the manifest {manifest} and count as deleted; if it names a part of the images, "
    )
    recorder = Recorder()
    assert plan_bucket(bucket.job(**partial), recorder).num_deleted == 3
    assert [line for line in recorder.lines if line.startswith(wanted)]
    kept = bucket.night(**partial, **{"plan.delete_missing": False})
    assert kept.classes == {"new": 1, "unchanged": 5}
    assert not [line for line in kept.recorder.lines if "manifest" in line]
    night = bucket.night(**partial)
    assert night.classes == {"unchanged": 6, "deleted": 3}
    assert [line for line in night.recorder.lines if line.startswith(wanted)]
    manifest.write_text(f"{names[0]}\n")
    with pytest.raises(SourceError, match=r"5 of 6 known images are no longer listed.*--no-delete keeps them"):
        bucket.label(**partial)
    back = bucket.night()
    assert (back.classes, back.copied, back.detected) == ({"new": 3, "unchanged": 6}, 3, 0)


def test_another_source_into_the_same_output_deletes_nothing(bucket: Bucket, tmp_path: Path) -> None:
    bucket.night()
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.jpg").write_bytes(fresh_scene(8))
    assert bucket.night(source=str(other)).classes == {"new": 1}
    assert bucket.night(source=f"{bucket.folder}/[0-3].*").classes == {"unchanged": 4}
    assert len(bucket.current()) == 9


def test_a_run_out_of_time_is_partial_and_the_next_goes_on(bucket: Bucket) -> None:
    hour = {"limits.max_hours": 1e-9}
    stopped = bucket.label(**hour)
    assert (stopped.row.status, stopped.row.num_labelled) == ("partial", 0)
    assert any("max_hours" in line for line in stopped.recorder.lines)
    again = bucket.label(**hour)
    assert (again.row.run_id, again.row.status) == (stopped.row.run_id, "partial")
    night = bucket.night()
    assert (night.row.run_id, night.row.num_labelled) == (stopped.row.run_id, 8)
    assert bucket.night().classes == {"unchanged": 8}


def test_a_stopped_run_of_another_job_is_left_behind(bucket: Bucket) -> None:
    stopped = bucket.label(**{"limits.max_hours": 1e-9})
    night = bucket.night(**{"policy.score_threshold": 0.7})
    assert night.row.run_id != stopped.row.run_id
    assert night.classes == {"new": 8}


def test_copies_of_a_run_with_a_lower_floor_hold_what_this_floor_stores(bucket: Bucket) -> None:
    bucket.night(**{"model.score_floor": 0.05})
    assert bucket.ask("SELECT count(*) AS low FROM all_detections WHERE score < 0.3")[0]["low"]
    for number in range(8):
        image = picture(bucket, number)
        shutil.copy(image, bucket.folder / f"copy-{image.name}")
    night = bucket.night(**{"model.score_floor": 0.3})
    assert night.copied == 8
    low = f"SELECT count(*) AS low FROM all_detections WHERE score < 0.3 AND run_id = '{night.row.run_id}'"
    assert bucket.ask(low)[0]["low"] == 0


def test_what_a_run_left_behind_had_labelled_is_copied(bucket: Bucket) -> None:
    class Dies(InlineRunner):
        def run(self, context: RunContext, shard_ids: Any, progress: Any) -> None:
            super().run(context, list(shard_ids)[:1], progress)
            raise RunError("the cluster was lost")

    for fields in ({}, {"policy.score_threshold": 0.6}):
        with pytest.raises(RunError):
            label_bucket(bucket.job(**fields), Dies(Hardware("cpu", 1)), Recorder(), Manner("resume_own"))
    recorder = Recorder()
    other = bucket.job(**{"policy.score_threshold": 0.9})
    row = label_bucket(other, InlineRunner(Hardware("cpu", 1)), recorder, Manner("resume_own"))
    assert (row.num_labelled, sum(report.num_copied for report in recorder.reports)) == (8, 3)
    assert not bucket.ask("SELECT * FROM current_detections WHERE score < 0.9")
