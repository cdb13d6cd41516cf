"""`batchdet label` as a person starts it: a process of its own, watched and killed from outside. Knows no rows.

Every process of a run, Ray's included, has the run's session id: so none can hide, and no stranger is hit.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.servers.s3 import ROOT

PATIENCE_SECONDS = 150
"""A run that shows nothing new for so long hangs."""

POLL_SECONDS = 0.01


@dataclass
class Command:
    """One running or ended `batchdet` command.

    Attributes:
        process: its first process, the driver.
        folder: where stdout and stderr are kept.
    """

    process: "subprocess.Popen[bytes]"
    folder: Path
    arguments: list[str] = field(default_factory=list)

    @property
    def out(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> int:
        """Wait for the driver to end; its exit code."""
        return self.process.wait(PATIENCE_SECONDS)

    def alive(self, title: str = "") -> list[psutil.Process]:
        """Living processes of this command whose command line begins with `title`."""
        found = []
        for process in psutil.process_iter():
            try:
                same = os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE
                if same and " ".join(process.cmdline()).startswith(title):
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess, PermissionError):
                continue
        return found

    def until(self, happened: Callable[[], bool]) -> bool:
        """Watch until it happened, or the driver ended: whether it happened."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not happened():
            if self.has_ended:
                return happened()
            assert time.monotonic() < give_up, f"nothing happened\n{self.err}"
            time.sleep(POLL_SECONDS)
        return True

    def kill(self, title: str) -> bool:
        """SIGKILL to the first process of the title that shows up; False where the run ended before."""
        found: list[psutil.Process] = []

        def appeared() -> bool:
            found.extend(self.alive(title))
            return bool(found)

        if not self.until(appeared):
            return False
        found[0].kill()
        return True

    def interrupt(self, number: signal.Signals, whole_group: bool = False) -> int:
        """Send a signal, to the driver or (as a terminal's Ctrl-C) to its whole group; the exit code."""
        if whole_group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        return self.end()

    def require_nothing_left(self) -> None:
        """Ray's processes end soon after the driver, whatever ended it."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while left := self.alive():
            assert time.monotonic() < give_up, [process.cmdline() for process in left]
            time.sleep(POLL_SECONDS)


@contextmanager
def started(folder: Path, arguments: list[str], env: Mapping[str, str]) -> Iterator[Command]:
    """`python -m batchdet` with these arguments; what is left of it dies with the block."""
    folder.mkdir(parents=True)
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "batchdet", *arguments],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(env),
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    command = Command(process, folder, arguments)
    try:
        yield command
    finally:
        process.kill()
        process.wait()
        for left in command.alive():
            left.kill()
