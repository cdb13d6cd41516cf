"""Laws 1 to 3 and 5, spoken to both runners: where a shard is labelled changes no row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchdet.cluster.driver import RayRunner
from batchdet.config import JobConfig
from batchdet.labelling import Hardware, InlineRunner
from batchdet.run import Runner, label_bucket
from tests.contract.conftest import IMAGES_PER_SHARD, NUM_SCENES, Recorder
from tests.contract.outputs import assert_same_rows, num_committed, rows_of

MakeJob = Callable[..., JobConfig]


@pytest.fixture(params=["inline", "ray"])
def runner(request: pytest.FixtureRequest) -> Runner:
    if request.param == "inline":
        return InlineRunner(Hardware("cpu", 1))
    request.getfixturevalue("ray_cluster")
    return RayRunner("local")


@pytest.mark.parametrize("readers", ["threads", "tasks"])
def test_rows_do_not_depend_on_runner_or_readers(
    runner: Runner, readers: str, make_job: MakeJob, undisturbed: Path
) -> None:
    job = make_job(**{"cluster.readers": readers})
    label_bucket(job, runner, Recorder())
    assert_same_rows(Path(job.output), undisturbed)


def test_every_listed_image_ends_in_one_state(runner: Runner, make_job: MakeJob, pictures: Path) -> None:
    job = make_job()
    row = label_bucket(job, runner, Recorder())
    listed = {path.as_uri() for path in pictures.iterdir()}
    images = rows_of(Path(job.output), "images")
    assert {uri.replace(" ", "%20") for uri in images["image_uri"].to_pylist()} == listed
    assert row.num_listed == len(listed) == row.num_labelled + row.num_failed + row.num_unchanged
    assert row.num_labelled == NUM_SCENES
    assert set(images["status"].to_pylist()) == {"labelled", "failed"}


def test_a_second_run_labels_nothing_twice(runner: Runner, make_job: MakeJob) -> None:
    job = make_job(**{"plan.retry_failed": False})
    label_bucket(job, runner, Recorder())
    committed = num_committed(Path(job.output))
    row = label_bucket(job, runner, Recorder())
    assert row.num_unchanged == row.num_listed
    assert num_committed(Path(job.output)) == committed


def test_another_block_size_moves_scores_by_float_noise_only(
    runner: Runner, make_job: MakeJob, undisturbed: Path
) -> None:
    job = make_job(**{"reading.block_images": 5})
    label_bucket(job, runner, Recorder())
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


def test_an_interrupted_run_is_resumed_with_its_own_plan(runner: Runner, make_job: MakeJob, undisturbed: Path) -> None:
    from batchdet.errors import InterruptedRunError

    job = make_job()
    with pytest.raises(InterruptedRunError, match="run the same command again to resume"):
        label_bucket(job, runner, _InterruptAfter(2))
    before = num_committed(Path(job.output))
    assert before >= 2
    resumed = Recorder()
    row = label_bucket(job, runner, resumed)
    assert resumed.images_done >= 2 * IMAGES_PER_SHARD - IMAGES_PER_SHARD
    assert row.status == "complete"
    assert len(list(Path(job.output).glob("_plans/*"))) == 1
    assert_same_rows(Path(job.output), undisturbed)
