"""When each stage of a shard's work began and ended, and seconds by stage. Knows not what a stage does.

A labeller's detecting thread begins with `load` (its model), and then is in one of `idle` (waiting for pixels),
`detect` (its parts: `copy`, `forward` and `post_filter`) and `between_shards` (no shard at hand). Beside it, in other
threads or processes, run `read`, `decode` and `commit` (its parts: `encode`, `upload`); on a GPU also `copy`, for the
batch after.
"""

import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from batchdet.records import Span

STAGES = (
    "load",
    "read",
    "decode",
    "idle",
    "detect",
    "copy",
    "forward",
    "post_filter",
    "between_shards",
    "commit",
    "encode",
    "upload",
)
"""Every stage, a whole before its parts."""

DETECTING = ("detect", "idle", "between_shards")
"""Where the time of a labeller's detecting thread goes; they do not overlap."""

_EPOCH_NS = time.time_ns() - time.monotonic_ns()
"""Makes the monotonic clocks of machines comparable as far as their wall clocks agree."""


def now_ns() -> int:
    """Nanoseconds since 1970 that never run backwards inside a process."""
    return _EPOCH_NS + time.monotonic_ns()


class Timeline:
    """The stages of one shard, or of one block; threads may take turns with it, not share it.

    Args:
        keeps_spans: keep every span for a trace, not only their sums.
    """

    def __init__(self, keeps_spans: bool = False) -> None:
        self._keeps_spans = keeps_spans
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._spans: list[Span] = []

    @property
    def keeps_spans(self) -> bool:
        """Whether it is read as a trace."""
        return self._keeps_spans

    @property
    def spans(self) -> tuple[Span, ...]:
        """In the order they ended or were added; empty unless kept."""
        return tuple(self._spans)

    @property
    def seconds(self) -> dict[str, float]:
        """Sums by stage: every stage, those of several threads added up."""
        return dict(self._seconds)

    @contextmanager
    def span(self, stage: str, images: int = 0) -> Iterator[None]:
        """Time the block as one span of this thread, also when it raises."""
        begin = now_ns()
        try:
            yield
        finally:
            self.record(stage, begin, now_ns(), images)

    def record(self, stage: str, begin_ns: int, end_ns: int, images: int = 0) -> None:
        """Add one span of this thread."""
        thread = threading.current_thread()
        self.add([Span(stage, _process(), thread.native_id or 0, thread.name, begin_ns, end_ns, images)])

    def add(self, spans: Iterable[Span]) -> None:
        """Add spans of anywhere."""
        for span in spans:
            self._seconds[span.stage] += (span.end_ns - span.begin_ns) / 1e9
            if self._keeps_spans:
                self._spans.append(span)


def _process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
