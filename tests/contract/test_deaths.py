"""Processes die in the middle of a run, and no row tells of it; an image that kills them is one failed row."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from batchdet.cluster.driver import RayRunner
from batchdet.config import JobConfig
from batchdet.run import label_bucket
from tests.contract.conftest import Recorder
from tests.contract.deadly import DEADLY_BYTES
from tests.contract.outputs import assert_same_rows, rows_of

MakeJob = Callable[..., JobConfig]

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(400)]


def ray_processes(title: str) -> list[psutil.Process]:
    """Workers of this test's cluster that Ray has titled `ray::<title>…`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(f"ray::{title}"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


class _KillLabellerAt(Recorder):
    """SIGKILL to one labeller after so many commits."""

    def __init__(self, commits: int) -> None:
        super().__init__()
        self.commits = commits
        self.killed = 0

    def shard_committed(self, report: Any) -> None:
        super().shard_committed(report)
        if len(self.reports) == self.commits:
            for process in ray_processes("Labeller")[:1]:
                process.kill()
                self.killed += 1


@contextmanager
def kill_one(title: str) -> Iterator[list[int]]:
    """SIGKILL the first process Ray titles so that shows up inside the block."""
    killed: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for process in ray_processes(title):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        done.set()
        watcher.join()


def test_a_killed_labeller_is_replaced_and_its_shards_labelled(make_job: MakeJob, undisturbed: Path) -> None:
    job = make_job()
    progress = _KillLabellerAt(commits=2)
    row = label_bucket(job, RayRunner("local"), progress)
    assert progress.killed == 1
    assert any("a labeller died" in line for line in progress.lines)
    assert row.status == "complete"
    assert_same_rows(Path(job.output), undisturbed)


def test_a_killed_reader_is_run_again(make_job: MakeJob, undisturbed: Path) -> None:
    job = make_job(**{"cluster.readers": "tasks"})
    with kill_one("read_remotely") as killed:
        label_bucket(job, RayRunner("local"), Recorder())
    assert len(killed) == 1
    assert_same_rows(Path(job.output), undisturbed)


@pytest.mark.parametrize(("readers", "failure"), [("threads", "detect:worker_died"), ("tasks", "decode:worker_died")])
def test_an_image_that_kills_its_worker_is_one_failed_row(
    readers: str, failure: str, make_job: MakeJob, pictures: Path, tmp_path: Path
) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    sound = min(pictures.glob("scene-*"))
    (source / sound.name).symlink_to(sound)
    (source / "scene-00001-deadly.bmp").write_bytes(DEADLY_BYTES)
    job = make_job(
        **{
            "source": str(source),
            "cluster.readers": readers,
            "cluster.labellers": 1,
            "limits.max_attempts_per_shard": 1,
            "reading.block_images": 2,
        }
    )
    row = label_bucket(job, RayRunner("local"), Recorder())
    images = rows_of(Path(job.output), "images").to_pylist()
    dead = [image for image in images if image["failure_code"] == "worker_died"]
    assert [(f"{image['failure_stage']}:{image['failure_code']}") for image in dead] == [failure]
    assert dead[0]["image_uri"].endswith("scene-00001-deadly.bmp")
    assert row.num_labelled == 1
