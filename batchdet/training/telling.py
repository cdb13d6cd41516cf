"""Steps of a training as lines for people. Knows no network and no worker."""

import time
from collections.abc import Callable
from datetime import timedelta

from batchdet.progress import LINE_SECONDS, Progress
from batchdet.training.steps import StepLine


class StepTeller:
    """Says the first step, the last, those whose student was examined, and one now and then.

    Args:
        progress: told the lines.
        clock: seconds from anywhere.
    """

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._said = float("-inf")
        self._steps = self._images = self._skipped = 0
        self._seconds = 0.0

    def __call__(self, line: StepLine) -> None:
        """One more step."""
        self._skipped += len(line.skipped)
        # The first one waits for the first pictures: it says nothing of the pace.
        if self._said > float("-inf"):
            self._steps += 1
            self._images += len(line.images)
            self._seconds += line.seconds
        if line.step == line.num_steps or line.map is not None or self._clock() - self._said >= LINE_SECONDS:
            self._said = self._clock()
            self._progress.log(self._text(line))

    def _text(self, line: StepLine) -> str:
        losses = ", ".join(f"{name} {value:.3g}" for name, value in line.losses.items())
        parts = [
            f"epoch {line.epoch:.2f}",
            f"step {line.step:,} of {line.num_steps:,}",
            f"loss {line.loss:.3g} ({losses})",
        ]
        if line.map is not None:
            parts.append(f"mAP {line.map:.3f}")
        if self._seconds > 0:
            left = (line.num_steps - line.step) * self._seconds / self._steps
            parts += [f"{self._images / self._seconds:,.1f} images/s", f"ETA {timedelta(seconds=round(left))}"]
        if self._skipped:
            parts.append(f"skipped {self._skipped:,}")
        return " · ".join(parts)
