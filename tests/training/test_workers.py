import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from batchdet.training.state import read_state
from tests.training.worker import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same training by one worker and by two; folder by number of workers."""
    folders = {workers: tmp_path_factory.mktemp(f"workers-{workers}") for workers in (1, 2)}
    train(folders[1], 0, 1)
    module = [sys.executable, "-m", "tests.training.worker", str(folders[2])]
    processes = [subprocess.Popen([*module, str(rank), "2"]) for rank in range(2)]
    try:
        assert [process.wait(timeout=150) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return folders


def curve(folder: Path, name: str, rank: int = 0) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((folder / f"{name}-{rank}.json").read_text())
    return found


@pytest.mark.parametrize("name", ["ssd", "rcnn"])
def test_two_workers_with_half_a_batch_each_learn_what_one_learns(trained: dict[int, Path], name: str) -> None:
    one, two = (curve(trained[workers], name) for workers in (1, 2))
    assert len(one) == len(two) == 5
    for alone, shared in zip(one, two, strict=True):
        assert shared == pytest.approx(alone, rel=1e-4)
    mine, theirs = (read_state(trained[workers] / name).part("model") for workers in (1, 2))
    for key, tensor in mine.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


def test_all_that_parts_two_workers_from_one_is_the_rounding_of_sums(trained: dict[int, Path]) -> None:
    """In float32 a batch in another order parts as far: 1e-7 at first, 1e-4 after 16 steps at this rate."""
    one, two = (curve(trained[workers], "double") for workers in (1, 2))
    assert len(one) == len(two) == 16
    for alone, shared in zip(one, two, strict=True):
        assert shared == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("name", ["ssd", "rcnn"])
def test_every_worker_reports_the_losses_of_the_whole_batch(trained: dict[int, Path], name: str) -> None:
    assert curve(trained[2], name, rank=0) == curve(trained[2], name, rank=1)
