"""What a run says of itself while it goes on. Knows reports, not how they came about."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batchdet.records import PlanCounts, ShardReport

LINE_SECONDS = 10.0
"""Between two plain lines."""


class Progress(Protocol):
    """Told what happens, in the order it happens."""

    def listing(self, keys: int) -> None:
        """So many keys were listed so far."""

    def planned(self, run_id: str, counts: PlanCounts, images_done: int) -> None:
        """The plan is written or read back; `images_done` of it were committed before."""

    def labellers(self, alive: int, wanted: int) -> None:
        """So many labellers are ready, of so many wanted."""

    def shard_committed(self, report: ShardReport) -> None:
        """One more shard is committed."""

    def log(self, line: str) -> None:
        """Something a person should know."""


@contextmanager
def open_progress(stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Iterator[Progress]:
    """Progress on a stream: a live display on a terminal, else plain lines."""
    if not stream.isatty():
        yield PlainProgress(stream, clock)
        return
    with LiveProgress(Console(file=stream), clock) as progress:
        yield progress


@dataclass
class Tally:
    """A run in numbers as far as it was told.

    Attributes:
        clock: seconds from anywhere.
        begun: when listing began, or the plan was there.
        num_planned: images of the plan; None until it is there.
        images_before: committed before this process began.
        images: committed since.
        failures: by `stage:code`, since this process began.
    """

    clock: Callable[[], float]
    begun: float | None = None
    keys: int = 0
    num_planned: int | None = None
    images_before: int = 0
    images: int = 0
    detections: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    alive: int = 0
    wanted: int = 0

    @property
    def done(self) -> int:
        """Images of the plan that are committed."""
        return self.images_before + self.images

    @property
    def seconds(self) -> float:
        """Since listing, or since the plan was there."""
        return 0.0 if self.begun is None else max(self.clock() - self.begun, 0.0)

    @property
    def seconds_left(self) -> float | None:
        """Until the plan is done at the pace of the images committed so far; None before the first."""
        if not self.images or self.num_planned is None:
            return None
        return (self.num_planned - self.done) * self.seconds / self.images

    def list_keys(self, keys: int) -> None:
        """So many keys so far."""
        self.begun = self.clock() if self.begun is None else self.begun
        self.keys = keys

    def plan(self, counts: PlanCounts, images_done: int) -> None:
        """The plan of a run is there: everything is counted from now on."""
        self.num_planned, self.images_before, self.begun = counts.num_planned, images_done, self.clock()
        self.keys = self.images = self.detections = 0
        self.failures.clear()

    def commit(self, report: ShardReport) -> None:
        """One more shard."""
        self.images += report.num_images
        self.detections += report.num_detections
        self.failures.update(report.failures)

    def listed_line(self) -> str:
        """Keys and their pace."""
        return f"listing: {self.keys:,} keys · {_pace(self.keys, self.seconds)} keys/s"

    def line(self) -> str:
        """Everything in one line."""
        planned = self.num_planned or 0
        share = f"{self.done / planned:.0%}" if planned else "100%"
        parts = [f"{self.done:,} of {planned:,} images ({share})", f"{_pace(self.images, self.seconds)} images/s"]
        if self.seconds_left:
            parts.append(f"ETA {timedelta(seconds=round(self.seconds_left))}")
        parts.append(f"{self.detections:,} detections")
        if self.failures:
            codes = ", ".join(f"{code} {count:,}" for code, count in self.failures.most_common(4))
            parts.append(f"failed {self.failures.total():,} ({codes})")
        if self.wanted:
            parts.append(f"labellers {self.alive} of {self.wanted}")
        return " · ".join(parts)


class PlainProgress:
    """A line now and then, for logs."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._tally = Tally(clock)
        self._clock = clock
        self._said = clock()

    def listing(self, keys: int) -> None:
        """See `Progress`."""
        self._tally.list_keys(keys)
        self._say_in_time(self._tally.listed_line())

    def planned(self, run_id: str, counts: PlanCounts, images_done: int) -> None:
        """See `Progress`."""
        if self._tally.keys:
            self._say(self._tally.listed_line())
        self._tally.plan(counts, images_done)
        self._say(_planned_line(run_id, counts, images_done))

    def labellers(self, alive: int, wanted: int) -> None:
        """See `Progress`."""
        before = (self._tally.alive, self._tally.wanted)
        self._tally.alive, self._tally.wanted = alive, wanted
        if before != (alive, wanted) and (alive < before[0] or alive == wanted):
            self._say(f"labellers: {alive} of {wanted}")
        elif self._tally.num_planned is not None:
            # Runners say this every moment, so long shards leave no silence.
            self._say_in_time(self._tally.line())

    def shard_committed(self, report: ShardReport) -> None:
        """See `Progress`."""
        self._tally.commit(report)
        if self._tally.done == self._tally.num_planned:
            self._say(self._tally.line())
        else:
            self._say_in_time(self._tally.line())

    def log(self, line: str) -> None:
        """See `Progress`."""
        self._say(line)

    def _say_in_time(self, line: str) -> None:
        if self._clock() - self._said >= LINE_SECONDS:
            self._say(line)

    def _say(self, line: str) -> None:
        self._said = self._clock()
        self._stream.write(f"{line}\n")
        self._stream.flush()


class LiveProgress:
    """A bar and its numbers, redrawn in place; log lines scroll above it."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._tally = Tally(clock)
        self._live = Live(console=console, get_renderable=self.picture, refresh_per_second=4, transient=False)

    def __enter__(self) -> "LiveProgress":
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def picture(self) -> RenderableType:
        """What the terminal shows now."""
        tally = self._tally
        if tally.num_planned is None:
            return Text(tally.listed_line() if tally.keys else "", overflow="ellipsis")
        bar = ProgressBar(total=max(tally.num_planned, 1), completed=tally.done if tally.num_planned else 1)
        rows = Table.grid(expand=True)
        rows.add_row(bar)
        rows.add_row(Text(tally.line()))
        return rows

    def listing(self, keys: int) -> None:
        """See `Progress`."""
        self._tally.list_keys(keys)

    def planned(self, run_id: str, counts: PlanCounts, images_done: int) -> None:
        """See `Progress`."""
        self._tally.plan(counts, images_done)
        self.log(_planned_line(run_id, counts, images_done))

    def labellers(self, alive: int, wanted: int) -> None:
        """See `Progress`."""
        self._tally.alive, self._tally.wanted = alive, wanted

    def shard_committed(self, report: ShardReport) -> None:
        """See `Progress`."""
        self._tally.commit(report)

    def log(self, line: str) -> None:
        """See `Progress`."""
        self._live.console.print(Text(line))


def _planned_line(run_id: str, counts: PlanCounts, images_done: int) -> str:
    resumed = f"; {images_done:,} of them were committed before" if images_done else ""
    rest = f", {counts.num_quarantined:,} of them failed too often" if counts.num_quarantined else ""
    gone = f"; {counts.num_deleted:,} deleted" if counts.num_deleted else ""
    return (
        f"run {run_id}: {counts.num_listed:,} images listed, {counts.num_planned:,} to label ({counts.num_new:,} new, "
        f"{counts.num_changed:,} changed, {counts.num_failed_retry:,} failed before, {counts.num_stale:,} stale), "
        f"{counts.num_unchanged:,} unchanged{rest}{gone}{resumed}"
    )


def _pace(count: int, seconds: float) -> str:
    pace = count / seconds if seconds > 0 else 0.0
    return f"{pace:,.1f}" if pace < 100 else f"{pace:,.0f}"
