"""What a command costs with everything it starts: wall and CPU seconds. Knows not what it does. Linux only.

Ray's daemons leave the tree of their parent, so processes are found by a mark in their environment.
"""

import contextlib
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MARK = "BATCHDET_BENCHMARK_MARK"
POLL_SECONDS = 0.1
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one command."""

    wall: float
    cpu: float


def run_measured(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Cost:
    """Run a command to its end.

    Args:
        command: what to run.
        environment: variables besides those of this process.
        log: its output goes here.

    Raises:
        SystemExit: it failed; names the log.
    """
    mark = uuid.uuid4().hex
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment, MARK: mark}, stdout=output, stderr=subprocess.STDOUT
        )
        watch = _Watch(f"{MARK}={mark}".encode())
        watch.start()
        code = process.wait()
        wall = time.perf_counter() - started
    watch.finish()
    if code:
        raise SystemExit(f"exit code {code} of {' '.join(command)}; see {log}")
    return Cost(wall, watch.cpu_seconds)


@dataclass
class _Watch:
    """Looks at the marked processes ten times a second, and keeps the last CPU time seen of each."""

    mark: bytes
    seen: dict[int, float] = field(default_factory=dict)
    foreign: set[int] = field(default_factory=set)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def cpu_seconds(self) -> float:
        return sum(self.seen.values())

    def start(self) -> None:
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def finish(self) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        # Those that were there before are not ours, but a new process carries its parent's environment until it execs.
        self.foreign = {pid for pid in _pids() if not self._is_marked(pid)} - {os.getpid()}
        while not self.ended.wait(POLL_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        for pid in _pids():
            if pid in self.foreign:
                continue
            with contextlib.suppress(OSError):
                if pid not in self.seen and not self._is_marked(pid):
                    continue
                self.seen[pid] = _cpu_seconds(pid)

    def _is_marked(self, pid: int) -> bool:
        try:
            return self.mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _cpu_seconds(pid: int) -> float:
    """User and system time; the fields after the command's name, which may hold spaces."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
