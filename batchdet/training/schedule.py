"""The learning rate of a step: a pure function, so nothing of it is saved. Knows no optimiser."""

import math

from batchdet.training.config import ScheduleConfig, TeacherConfig


def rate_share(step: int, num_steps: int, schedule: ScheduleConfig) -> float:
    """Share of the peak rate that a step uses.

    Args:
        step: from 0.
        num_steps: of the whole training.
        schedule: warm-up and decay.
    """
    if step < schedule.warmup_steps:
        return schedule.warmup_start + (1.0 - schedule.warmup_start) * (step + 1) / schedule.warmup_steps
    if schedule.decay == "cosine":
        passed = (step - schedule.warmup_steps) / max(1, num_steps - 1 - schedule.warmup_steps)
        return schedule.final_share + (1.0 - schedule.final_share) * 0.5 * (1.0 + math.cos(math.pi * passed))
    if schedule.decay == "steps":
        fallen = sum(step >= share * num_steps for share in schedule.milestones)
        return float(schedule.gamma**fallen)
    return 1.0


def pseudo_weight(step: int, teacher: TeacherConfig) -> float:
    """Weight of a pseudo-labelled image in a step, counted from 0."""
    ramp = min(1.0, (step + 1) / teacher.ramp_steps) if teacher.ramp_steps else 1.0
    return teacher.pseudo_weight * ramp
