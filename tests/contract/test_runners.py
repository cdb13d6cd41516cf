"""Laws 1 to 3 and 5, spoken to both runners: where a shard is labelled changes no row."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchdet.cluster.driver import RayRunner
from batchdet.config import JobConfig
from batchdet.errors import InterruptedRunError
from batchdet.labelling import Hardware, InlineRunner
from batchdet.run import label_bucket
from tests.contract.conftest import IMAGES_PER_SHARD, NUM_SCENES, Recorder
from tests.contract.outputs import assert_same_rows, num_committed, rows_of

MakeJob = Callable[..., JobConfig]


INLINE = InlineRunner(Hardware("cpu", 1))
RUNNERS = {"inline": INLINE, "inline, two labellers": InlineRunner(Hardware("cpu", 1), 2), "ray": RayRunner("local")}


@pytest.mark.parametrize(
    ("where", "fields"),
    [
        ("inline", {}),
        ("inline, two labellers", {}),
        ("ray", {"cluster.labellers": 2}),
        ("ray", {"cluster.labellers": 1, "cluster.readers": "tasks"}),
    ],
)
def test_the_laws_hold_wherever_shards_are_labelled(
    where: str, fields: dict[str, object], make_job: MakeJob, pictures: Path, undisturbed: Path, request: Any
) -> None:
    """Coverage, exactly once and determinism: on one or two labellers, read by threads or tasks, the same rows.

    And done is committed: a second run labels nothing twice.
    """
    if where == "ray":
        request.getfixturevalue("ray_cluster")
    runner = RUNNERS[where]
    job = make_job(**fields, **{"plan.retry_failed": False})
    row = label_bucket(job, runner, Recorder())
    assert_same_rows(Path(job.output), undisturbed)
    listed = {path.as_uri() for path in pictures.iterdir()}
    images = rows_of(Path(job.output), "images")
    assert {uri.replace(" ", "%20") for uri in images["image_uri"].to_pylist()} == listed
    assert row.num_listed == len(listed) == row.num_labelled + row.num_failed + row.num_unchanged
    assert row.num_labelled == NUM_SCENES
    assert set(images["status"].to_pylist()) == {"labelled", "failed"}
    assert row.images_per_second > 0
    assert json.loads(row.policy) == job.policy.model_dump(mode="json")
    committed = num_committed(Path(job.output))
    second = label_bucket(job, runner, Recorder())
    assert second.num_unchanged == second.num_listed == len(listed)
    assert num_committed(Path(job.output)) == committed


def test_another_block_size_moves_scores_by_float_noise_only(make_job: MakeJob, undisturbed: Path) -> None:
    job = make_job(**{"reading.block_images": 5})
    label_bucket(job, INLINE, Recorder())
    got, expected = rows_of(Path(job.output), "detections"), rows_of(undisturbed, "detections")
    for column in ("image_uri", "label", "detection_index"):
        assert got[column].equals(expected[column])
    np.testing.assert_allclose(got["score"].to_numpy(), expected["score"].to_numpy(), atol=1e-5)


class _InterruptAfter(Recorder):
    """Ctrl-C after so many commits."""

    def __init__(self, commits: int) -> None:
        super().__init__()
        self.commits = commits

    def shard_committed(self, report: Any) -> None:
        super().shard_committed(report)
        if len(self.reports) == self.commits:
            raise KeyboardInterrupt


def test_an_interrupted_run_is_resumed_with_its_own_plan(make_job: MakeJob, undisturbed: Path) -> None:
    job = make_job()
    with pytest.raises(InterruptedRunError, match="run the same command again to resume"):
        label_bucket(job, INLINE, _InterruptAfter(2))
    before = num_committed(Path(job.output))
    assert before >= 2
    resumed = Recorder()
    row = label_bucket(job, INLINE, resumed)
    assert resumed.images_done >= 2 * IMAGES_PER_SHARD - IMAGES_PER_SHARD
    assert row.status == "complete"
    assert len(list(Path(job.output).glob("_plans/*"))) == 1
    assert_same_rows(Path(job.output), undisturbed)
