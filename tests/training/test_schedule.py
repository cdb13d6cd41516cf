import math

import pytest

from batchdet.training.config import ScheduleConfig, TeacherConfig
from batchdet.training.schedule import pseudo_weight, rate_share


def test_warm_up_then_a_cosine_to_the_end() -> None:
    schedule = ScheduleConfig(warmup_steps=4, warmup_start=0.2, final_share=0.1)
    shares = [rate_share(step, 104, schedule) for step in range(104)]
    assert shares[:4] == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert shares[4] == pytest.approx(1.0)
    assert shares[-1] == pytest.approx(0.1)
    assert shares[4:] == sorted(shares[4:], reverse=True)
    half = 4 + 99 // 3
    assert shares[half] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 3)))


def test_steps_fall_at_their_milestones() -> None:
    schedule = ScheduleConfig(warmup_steps=0, decay="steps", milestones=(0.5, 0.8), gamma=0.1)
    shares = [rate_share(step, 10, schedule) for step in range(10)]
    assert shares == pytest.approx([1.0] * 5 + [0.1] * 3 + [0.01] * 2)


def test_without_decay_the_rate_stays() -> None:
    assert {rate_share(step, 10, ScheduleConfig(warmup_steps=0, decay="none")) for step in range(10)} == {1.0}


def test_the_weight_of_pseudo_labels_ramps_up() -> None:
    teacher = TeacherConfig(pseudo_weight=0.5, ramp_steps=4)
    assert [pseudo_weight(step, teacher) for step in range(5)] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])
    assert pseudo_weight(0, TeacherConfig()) == 1.0
