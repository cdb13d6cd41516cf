"""The time lines of a profiled run as a Chrome trace, and in words. Knows stages and seconds, not what is done in them.

A labeller writes the trace of each shard it commits, so nothing is lost with it; at the end they are put together.
"""

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from batchdet.records import ShardReport, Span
from batchdet.storage.filesystem import Store
from batchdet.storage.layout import PROFILES
from batchdet.timeline import DETECTING, STAGES

MAX_EVENTS = 400_000
"""Events of the trace put together: about 60 MB, which viewers still open."""

_WORDS = {"detect": "busy", "idle": "waiting for pixels", "between_shards": "between shards"}


@dataclass
class StageTotals:
    """Seconds by stage, images and bytes of the shards committed so far."""

    seconds: Counter[str] = field(default_factory=Counter)
    images: int = 0
    bytes_read: int = 0
    copied: int = 0

    def add(self, report: ShardReport) -> None:
        """One more shard."""
        self.seconds.update(report.seconds)
        self.images += report.num_images
        self.bytes_read += report.bytes_read
        self.copied += report.num_copied

    def labellers_line(self) -> str:
        """Where the time of the detecting threads went."""
        total = sum(self.seconds[stage] for stage in DETECTING) or 1.0
        return "labellers: " + ", ".join(f"{self.seconds[name] / total:.0%} {_WORDS[name]}" for name in DETECTING)

    def summary(self, seconds: float) -> list[str]:
        """Every stage as seconds, milliseconds an image and share of the detecting threads' time, in lines.

        Args:
            seconds: the run took.
        """
        detecting = sum(self.seconds[stage] for stage in DETECTING) or 1.0
        lines = [f"{'stage':15}{'seconds':>10}{'ms/image':>10}{'share':>8}"]
        for stage in STAGES:
            spent = self.seconds[stage]
            per_image = 1e3 * spent / max(self.images, 1)
            lines.append(f"{stage:15}{spent:10.2f}{per_image:10.2f}{spent / detecting:8.1%}")
        pace = self.images / seconds if seconds else 0.0
        lines.append(
            f"{self.images:,} images in {seconds:.1f} s, {pace:,.1f} images/s, {self.bytes_read / 1e6:,.1f} MB read"
        )
        lines.append(
            "share: of the time of the labellers' detecting threads, which detect + idle + between_shards fill"
        )
        return lines


def write_trace(output: Store, run_id: str, shard_id: int, spans: Sequence[Span]) -> None:
    """Write the Chrome trace of one shard.

    Raises:
        StorageError: the output refuses it.
    """
    output.write_bytes(f"{PROFILES}/{run_id}/shard-{shard_id:05d}.json", _document(_events(spans, shard_id)))


def write_profile(output: Store, run_id: str, totals: StageTotals, seconds: float) -> list[str]:
    """Put the traces of the run's shards together, and write the summary; the summary and where they are, in lines.

    Args:
        output: of the run.
        run_id: of the run.
        totals: of the shards committed by this process.
        seconds: the run took.

    Raises:
        StorageError: the output refuses it.
    """
    folder = f"{PROFILES}/{run_id}"
    names = [name for name in output.list(folder) if name.rpartition("/")[2].startswith("shard-")]
    events = list(islice(_read_events(output, names), MAX_EVENTS + 1))
    lines = [*totals.summary(seconds), totals.labellers_line()]
    if len(events) > MAX_EVENTS:
        lines.append(f"trace.json ends after {MAX_EVENTS:,} events; each shard's file has all of its own")
    output.write_bytes(f"{folder}/trace.json", _document(dict.fromkeys(events[:MAX_EVENTS])))
    output.write_bytes(f"{folder}/summary.txt", ("\n".join(lines) + "\n").encode())
    return [*lines, f"trace for Perfetto or chrome://tracing: {output.child_uri(folder)}/trace.json"]


def _read_events(output: Store, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield from (line.rstrip(",") for line in output.read_bytes(name).decode().splitlines()[1:-1])


def _document(events: Iterable[str]) -> bytes:
    """Chrome's trace event format, one event a line."""
    return ("[\n" + ",\n".join(events) + "\n]\n").encode()


def _events(spans: Sequence[Span], shard_id: int) -> Iterator[str]:
    threads = {(span.process, span.thread): span.thread_name for span in spans}
    for (process, thread), name in threads.items():
        place = {"ph": "M", "pid": _number(process), "tid": thread}
        yield json.dumps(place | {"name": "process_name", "args": {"name": process}})
        yield json.dumps(place | {"name": "thread_name", "args": {"name": name}})
    for span in spans:
        yield json.dumps(
            {
                "name": span.stage,
                "ph": "X",
                "pid": _number(span.process),
                "tid": span.thread,
                "ts": span.begin_ns / 1e3,
                "dur": (span.end_ns - span.begin_ns) / 1e3,
                "args": {"shard": shard_id, "images": span.images},
            }
        )


def _number(process: str) -> int:
    """Chrome wants a number for a process, and process ids of two hosts may be the same."""
    return zlib.crc32(process.encode()) & 0x7FFFFFFF
