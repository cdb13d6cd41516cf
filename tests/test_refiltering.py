"""A policy alone: what refilter leaves equals what labelling with that policy would have committed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet.analysis.audit import audit_run
from batchdet.config import PolicyConfig, load_job
from batchdet.demo.scenes import draw_scenes
from batchdet.demo.shipped import shipped_model
from batchdet.engine.detections import Detections
from batchdet.engine.postfilter import PostFilter
from batchdet.errors import ConfigError, OutputError
from batchdet.labelling import Hardware, InlineRunner
from batchdet.records import FailedImage, ImageFacts, ImageOutcome, ImageRef, LabelledImage
from batchdet.refiltering import newest_policy, refilter
from batchdet.run import label_bucket
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import read_shard
from batchdet.storage.planning import write_plan
from batchdet.storage.schema import DETECTIONS, DETECTIONS_ENCODING, FileStamp, encode_table
from tests.analysis.outputs import CATEGORIES, NOON, Image, close, commit, open_run, run_id
from tests.contract.conftest import Recorder
from tests.histories import Killed, current, deleting_night, fresh_output, fused, night, restore, rows_of, snapshot
from tests.storage.made import listing

Found = tuple[float, int, tuple[int, int, int, int]]
"""score, label, box"""

WIDTH, HEIGHT = 100, 80
FLOOR = 0.05
LAX, STRICT = PolicyConfig(score_threshold=0.5), PolicyConfig(score_threshold=0.8)


def silent(_: str) -> None:
    pass


def outcome(ref: ImageRef, found: Sequence[Found] | None, capped: bool, policy: PolicyConfig) -> ImageOutcome:
    """The image as labelling with the policy leaves it; None fails."""
    if found is None:
        return FailedImage(ref, "decode", "truncated", "made to fail", ImageFacts(size_bytes=3))
    ordered = sorted(found, key=lambda one: -one[0])
    verdict = PostFilter(policy, CATEGORIES, FLOOR)(
        Detections(
            boxes=torch.tensor([box for _, _, box in ordered], dtype=torch.float32).reshape(-1, 4),
            scores=torch.tensor([score for score, _, _ in ordered], dtype=torch.float32),
            labels=torch.tensor([label for _, label, _ in ordered], dtype=torch.int64),
            image_index=torch.zeros(len(ordered), dtype=torch.int64),
            capped=torch.tensor([capped]),
            finite=torch.ones(1, dtype=torch.bool),
        )
    )
    kept = verdict.detections
    facts = ImageFacts(WIDTH, HEIGHT, None, "sha256:1", "none", ref.size_bytes)
    columns = (kept.boxes.numpy(), kept.scores.numpy(), kept.labels.numpy(), verdict.accepted.numpy())
    return LabelledImage(ref, facts, *columns, bool(verdict.capped[0]))


Made = tuple[Sequence[Found] | None, bool]
"""What the model found, and whether its cap bit."""


def labelled_night(output: Store, number: int, images: dict[str, Made], policy: PolicyConfig, shard: int = 3) -> None:
    """A complete run as labelling with the policy leaves it."""
    plan = open_run(output, number, dict.fromkeys(images, f"night {number}"), shard, policy)
    ledger = Ledger(output, clock=lambda: NOON)
    for shard_id in range(plan.num_shards):
        part = read_shard(output, plan, shard_id)
        ledger.commit(plan, part, [outcome(ref, *images[ref.uri], policy) for ref in part.images])
    close(output, plan)


def rows_without_shard(output: Store, table: str, run: str) -> list[dict[str, Any]]:
    return [row | {"shard_id": None} for row in rows_of(output, table, run)]


fractions = st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.55, 0.7, 0.9, 1.0])
policies = st.builds(
    PolicyConfig,
    score_threshold=fractions,
    score_thresholds=st.dictionaries(st.sampled_from(CATEGORIES[1:]), fractions, max_size=2),
    iou_threshold=st.none() | st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]),
    nms=st.sampled_from(["per_class", "agnostic"]),
    max_detections=st.none() | st.integers(1, 3),
    min_box_side=st.sampled_from([0.0, 10.0, 20.5]),
)
boxes = st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(1, 4), st.integers(1, 3)).map(
    lambda box: (10 * box[0], 10 * box[1], 10 * (box[0] + box[2]), 10 * (box[1] + box[3]))
)
found_in_one = st.lists(
    st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.7, 0.9]), st.integers(1, 3), boxes), max_size=9
)
buckets = st.dictionaries(
    st.sampled_from([f"s3://p/{name}" for name in "abcdefäz"]),
    st.tuples(st.none() | found_in_one, st.booleans()),
    min_size=1,
)


@settings(max_examples=40, deadline=None)
@given(buckets, policies, policies)
def test_refilter_equals_labelling_again(images: dict[str, Made], before: PolicyConfig, after: PolicyConfig) -> None:
    output = fresh_output()
    labelled_night(output, 1, images, after)
    wanted = {table: rows_without_shard(output, table, run_id(1)) for table in ("images", "detections")}
    output = fresh_output()
    labelled_night(output, 1, images, before)
    earlier = {row["image_uri"]: row for row in rows_of(output, "images", run_id(1))}
    row = refilter(output, after, silent)
    for image in wanted["images"]:
        # The one thing that stored rows do not tell: whose cap it was that bit.
        if earlier[image["image_uri"]]["hit_detection_cap"] and before.max_detections is not None:
            image["hit_detection_cap"] = True
    assert {table: rows_without_shard(output, table, row.run_id) for table in wanted} == wanted
    audit_run(output).require_passed()


def test_labelling_scenes_and_refiltering_them(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for drawn in draw_scenes(seed=7, count=6):
        (pictures / drawn.name).write_bytes(drawn.data)
    (pictures / "broken.jpg").write_bytes(b"no picture")
    policy = {"policy.iou_threshold": 0.3, "policy.max_detections": 2, "policy.nms": "agnostic"}
    outputs = []
    for name, fields in (("early", {}), ("late", policy)):
        job = load_job(
            None,
            {
                "source": str(pictures),
                "output": str(tmp_path / name),
                "model.reference": str(shipped_model()),
                "limits.max_failure_rate": 1.0,
                "plan.images_per_shard": 3,
                **fields,
            },
        )
        label_bucket(job, InlineRunner(Hardware("cpu", 1)), Recorder())
        outputs.append(open_store(job.output, {}))
    early, late = outputs
    (wanted,) = Ledger(late).complete_runs()
    row = refilter(early, job.policy, silent)
    same = ("num_listed", "num_labelled", "num_empty", "num_failed", "num_detections", "policy", "policy_digest")
    assert [getattr(row, name) for name in same] == [getattr(wanted, name) for name in same]
    assert (row.model_digest, row.images_per_second, row.num_unchanged) == (wanted.model_digest, 0.0, 0)
    for table in ("images", "detections"):
        rows = [
            [one | {"labelled_at": None} for one in rows_without_shard(output, table, run)]
            for output, run in ((early, row.run_id), (late, wanted.run_id))
        ]
        assert rows[0] == rows[1]
    audit_run(early).require_passed()
    assert label_bucket(replace_output(job, early), InlineRunner(Hardware("cpu", 1)), Recorder()).num_unchanged == 6


def replace_output(job: Any, output: Store) -> Any:
    return job.model_copy(update={"output": output.uri})


def test_only_rows_of_another_policy_are_judged_again() -> None:
    output = fresh_output()
    night(output, 1, {"s3://p/a": Image(2), "s3://p/b": Image(3), "s3://p/c": Image(1)}, policy=LAX)
    night(output, 2, {"s3://p/d": Image(1), "s3://p/a": Image(failure="truncated")}, policy=STRICT)
    row = refilter(output, STRICT, silent)
    assert (row.num_listed, row.num_unchanged, row.num_labelled) == (4, 2, 2)
    assert [image["image_uri"] for image in rows_of(output, "images", row.run_id)] == ["s3://p/b", "s3://p/c"]
    audit_run(output).require_passed()
    said: list[str] = []
    files = snapshot()
    assert refilter(output, STRICT, said.append) == row
    assert said == ["every current image is judged by this policy already"]
    assert snapshot() == files
    assert newest_policy(output) == STRICT


def test_deleted_and_superseded_rows_are_left() -> None:
    output = fresh_output()
    night(output, 1, {"s3://p/a": Image(2), "s3://p/b": Image(3)}, policy=LAX)
    night(output, 2, {"s3://p/a": Image(1)}, policy=LAX)
    deleting_night(output, 3, ["s3://p/b"])
    row = refilter(output, STRICT, silent)
    assert [image["etag"] for image in rows_of(output, "images", row.run_id)] == ["night 2"]
    assert [image["image_uri"] for image in current(output)[0]] == ["s3://p/a"]


def test_facts_of_the_image_stay() -> None:
    output = fresh_output()
    night(output, 1, {"s3://p/a": Image(2, 2)}, policy=LAX)
    (before,) = rows_of(output, "images", run_id(1))
    (after,) = rows_of(output, "images", refilter(output, STRICT, silent).run_id)
    assert before | {"num_detections": 1} == after


def other_model(output: Store, number: int, images: dict[str, Image], **changes: Any) -> None:
    """A complete run of another model or of other settings."""
    plan = open_run(output, number, dict.fromkeys(images, f"night {number}"), 2, LAX)
    config = changes.pop("config", plan.header.config)
    model = replace(plan.header.model, **changes)
    changed = replace(plan, header=replace(plan.header, model=model, config=config))
    tables = [read_shard(output, plan, shard_id) for shard_id in range(plan.num_shards)]
    write_plan(output, changed, (next(iter(listing(shard.images))) for shard in tables))
    commit(output, changed, images)
    close(output, changed)


def test_each_model_and_each_setting_gets_a_run_of_its_own() -> None:
    output = fresh_output()
    floor = '{"model":{"score_floor":0.2}}'
    night(output, 1, {"s3://p/a": Image(2)}, policy=LAX)
    other_model(output, 2, {"s3://p/b": Image(2)}, digest="sha256:other")
    other_model(output, 3, {"s3://p/c": Image(2)}, config=floor)
    row = refilter(output, STRICT, silent)
    made = Ledger(output).complete_runs()[:3]
    assert made[0] == row
    uris = [[image["image_uri"] for image in rows_of(output, "images", run.run_id)] for run in made]
    assert uris == [["s3://p/c"], ["s3://p/b"], ["s3://p/a"]]
    assert made[1].model_digest == "sha256:other"
    assert '"score_floor":0.2' in made[0].config
    for run in made:
        audit_run(output, run.run_id).require_passed()


def test_a_threshold_under_the_stored_floor_is_refused() -> None:
    output = fresh_output()
    night(output, 1, {"s3://p/a": Image(2)}, policy=LAX)
    files = snapshot()
    with pytest.raises(
        ConfigError, match=r"policy\.score_threshold is 0\.01, under model\.score_floor 0\.05.*run 2026"
    ):
        refilter(output, PolicyConfig(score_threshold=0.01), silent)
    with pytest.raises(ConfigError, match=r"policy\.score_thresholds\.fox: the model has no such category"):
        refilter(output, PolicyConfig(score_thresholds={"fox": 0.9}), silent)
    assert snapshot() == files


def test_an_older_model_the_policy_does_not_fit_keeps_what_was_accepted() -> None:
    output = fresh_output()
    other_model(output, 1, {"s3://p/a": Image(2)}, digest="sha256:old", categories=("__background__", "x", "y", "z"))
    night(output, 2, {"s3://p/b": Image(2)}, policy=LAX)
    said: list[str] = []
    row = refilter(output, PolicyConfig(score_thresholds={"cat": 0.9}), said.append)
    assert row.num_listed == 1
    assert said[0].startswith("left as they are, the policy does not fit: policy.score_thresholds.cat: ")


def test_nothing_there_and_something_open_are_refused() -> None:
    output = fresh_output()
    with pytest.raises(OutputError, match="no complete run here"):
        refilter(output, LAX, silent)
    commit(output, open_run(output, 1, {"s3://p/a": "x"}), {}, [])
    with pytest.raises(OutputError, match="is open; finish it"):
        refilter(output, LAX, silent)


def test_a_kill_before_any_change_is_gone_on_from() -> None:
    output = fresh_output()
    night(output, 1, {f"s3://p/{name}": Image(3, 1) for name in "abcdefgh"}, policy=LAX)
    before, begun = current(output), snapshot()
    refilter(output, STRICT, silent, 9_000)
    after = current(output)
    assert after != before
    for changes in range(100):
        restore(begun)
        try:
            refilter(fused(output, changes), STRICT, silent, 9_000)
        except Killed:
            assert current(output) == before, "until the run is closed nothing is seen of it"
            refilter(output, STRICT, silent, 9_000)
        else:
            break
        assert current(output) == after
        assert Ledger(output).open_runs() == []
        assert len(Ledger(output).run_rows()) == 2, "what was begun was gone on with"
    assert 5 < changes < 99


def test_a_damaged_file_is_said() -> None:
    output = fresh_output()
    night(output, 1, {"s3://p/a": Image(2), "s3://p/b": Image(1)}, policy=LAX)
    name = f"detections/run_id={run_id(1)}/shard-00000.parquet"
    stamp = FileStamp(run_id(1), "m", "p")
    output.write_bytes(name, encode_table(DETECTIONS.empty_table(), DETECTIONS_ENCODING, stamp))
    with pytest.raises(OutputError, match="rows are missing or come twice"):
        refilter(output, STRICT, silent)


def test_a_crowd_is_judged_like_one_image() -> None:
    """Pieces are cut where an image begins."""
    draw = np.random.default_rng(3)
    output = fresh_output()
    images: dict[str, Made] = {}
    for number in range(40):
        corners = draw.integers(0, 60, (900, 2))
        images[f"s3://p/{number:03d}"] = (
            [
                (float(score), 1 + place % 3, (int(x), int(y), int(x) + 12, int(y) + 15))
                for place, (score, (x, y)) in enumerate(zip(draw.uniform(0.06, 1, 900), corners, strict=True))
            ],
            False,
        )
    after = PolicyConfig(score_threshold=0.2, iou_threshold=0.4, max_detections=50)
    labelled_night(output, 1, images, LAX, shard=16)
    row = refilter(output, after, silent)
    wanted = {uri: outcome(ImageRef(uri), *one, after) for uri, one in images.items()}
    accepted: dict[str, list[bool]] = {}
    for one in rows_of(output, "detections", row.run_id):
        accepted.setdefault(one["image_uri"], []).append(one["accepted"])
    assert accepted == {uri: one.accepted.tolist() for uri, one in wanted.items() if isinstance(one, LabelledImage)}
