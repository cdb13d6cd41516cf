"""`ray start --head` as a process of a test, with a dashboard that takes jobs and asks for a token. Knows no job."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.contract.processes import Command
from tests.servers.s3 import ROOT


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        dashboard: where jobs are submitted.
        env: with which it is reached.
        command: its processes, and those of its workers; drivers of submitted jobs are not among them.
    """

    dashboard: str
    env: dict[str, str]
    command: Command


@contextmanager
def running_head(folder: Path) -> Iterator[Head]:
    """A head of two cores, whose processes end with the block."""
    folder.mkdir()
    (folder / "token").write_text(secrets.token_hex(32))
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "OMP_NUM_THREADS": "1"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | given | {"PYTHONPATH": str(ROOT), "PATH": path}
    port, dashboard, agent = _free_port(), _free_port(), _free_port()
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="bd-", ignore_cleanup_errors=True) as short:
        ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        flags = [*ports, "--num-cpus=2", f"--temp-dir={short}"]
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=true"]
        with (folder / "stderr").open("wb") as log:
            process = subprocess.Popen([*start, *flags], env=env, stdout=log, stderr=log, start_new_session=True)
        command = Command(process, folder)
        try:
            # The dashboard hands jobs to the agent, which is there later and gives up where its port is taken.
            assert command.until(lambda: _answers(dashboard) and _answers(agent))
            yield Head(f"http://127.0.0.1:{dashboard}", env, command)
        finally:
            for one in command.alive():
                one.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
