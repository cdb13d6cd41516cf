from dataclasses import replace

from batchdet.training.steps import StepLine
from batchdet.training.telling import StepTeller
from tests.contract.conftest import Recorder


def line(step: int, skipped: int = 0) -> StepLine:
    images = tuple(f"memory://{place}" for place in range(4))
    return StepLine(
        step, 10, step / 5, {"a": 1.0, "b": 0.5}, 0.1, 1.0, images, dict.fromkeys(images[:skipped], "x"), 2.0
    )


def test_a_step_whose_student_was_examined_is_told() -> None:
    progress = Recorder()
    tell = StepTeller(progress, lambda: 0.0)
    for step in (1, 2, 3):
        tell(replace(line(step), map=0.4321 if step == 2 else None))
    assert progress.lines[1] == (
        "epoch 0.40 · step 2 of 10 · loss 1.5 (a 1, b 0.5) · mAP 0.432 · 2.0 images/s · ETA 0:00:16"
    )
    assert len(progress.lines) == 2


def test_the_first_step_the_last_and_one_now_and_then_are_told() -> None:
    progress, now = Recorder(), [0.0]
    tell = StepTeller(progress, lambda: now[0])
    for step in range(1, 11):
        tell(line(step, skipped=step == 2))
        now[0] += 4.0
    assert [text.split(" · ")[1] for text in progress.lines] == [f"step {step} of 10" for step in (1, 4, 7, 10)]
    assert progress.lines[0] == "epoch 0.20 · step 1 of 10 · loss 1.5 (a 1, b 0.5)"
    assert progress.lines[1] == (
        "epoch 0.80 · step 4 of 10 · loss 1.5 (a 1, b 0.5) · 2.0 images/s · ETA 0:00:12 · skipped 1"
    )
