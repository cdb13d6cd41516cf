import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from batchdet.errors import ConfigError
from batchdet.storage.filesystem import open_store
from batchdet.training.events import require_tensorboard
from batchdet.training.steps import StepLine, StepLog, read_steps


def line(step: int, score: float | None = None) -> StepLine:
    images = ("memory://a", "memory://b")
    return StepLine(step, 4, step / 2, {"box": 1.0 / step, "class": 0.5}, 0.1, 2.0, images, {}, 0.5, score)


def test_tensorboard_reads_what_the_steps_say(tmp_path: Path) -> None:
    """Two files, as two checkpoints leave them, the first written twice, as by a training that was begun again."""
    lines = [line(1), line(2, 0.25), line(3), line(4, 0.5)]
    output = open_store(str(tmp_path), {})
    for part in (lines[:2], lines[:2], lines[2:]):
        log = StepLog(output, with_events=True)
        for one in part:
            log.add(one)
        log.write()
    assert read_steps(output) == lines
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("map")] == [(2, 0.25), (4, 0.5)]
    losses = read.Scalars("loss/all")
    assert [event.step for event in losses] == [1, 2, 3, 4]
    assert [event.value for event in losses] == pytest.approx([one.loss for one in lines])
    assert [event.value for event in read.Scalars("images_per_second")] == [4.0] * 4
    assert losses[1].wall_time - losses[0].wall_time == pytest.approx(0.5)
    assert set(read.Tags()["scalars"]) == {
        *("loss/box", "loss/class", "loss/all", "learning_rate", "gradient_norm", "images_per_second", "map")
    }


def test_no_event_files_unless_asked(tmp_path: Path) -> None:
    log = StepLog(open_store(str(tmp_path), {}))
    log.add(line(1))
    log.write()
    assert [path.name for path in tmp_path.iterdir()] == ["steps"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'batchdet\[tensorboard\]'"):
        require_tensorboard()
