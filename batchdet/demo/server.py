"""An S3 server of its own process, for as long as a `with` block lasts. Knows nothing of what is put into it.

The server is moto's, in memory, on a free port of the loopback interface. It ends with the block, and also when
this process dies in any way: it watches a pipe that only this process holds open.
"""

import contextlib
import importlib.util
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, cast

from batchdet.errors import StorageError, UserError

_PATIENCE_SECONDS = 60.0
_FAREWELL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class BucketServer:
    """A running S3 server.

    Attributes:
        endpoint_url: e.g. `http://127.0.0.1:40123`.
        pid: of the server's process.
    """

    endpoint_url: str
    pid: int

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables under which boto, s3fs and arrow reach this server and no other."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": "demo",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def serve_bucket(patience_seconds: float = _PATIENCE_SECONDS) -> Iterator[BucketServer]:
    """Start the server, wait until it answers, stop it at the end of the block.

    Raises:
        UserError: moto is not installed.
        StorageError: the server ended or did not answer within `patience_seconds`.
    """
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        raise UserError("the demo needs moto's S3 server: pip install 'batchdet[demo]'")
    with tempfile.TemporaryFile() as complaints:
        # A session of its own: Ctrl-C reaches this process first, which may still have rows to store.
        process = subprocess.Popen(
            [sys.executable, "-m", "batchdet.demo.bucket_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,
        )
        with process:
            try:
                yield BucketServer(_await_address(process, complaints, patience_seconds), process.pid)
            finally:
                _stop(process)


def _await_address(process: subprocess.Popen[bytes], complaints: IO[bytes], patience_seconds: float) -> str:
    """The one line the server writes when it listens."""
    stdout = cast(IO[bytes], process.stdout)
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        if not selector.select(patience_seconds):
            raise StorageError("the demo's S3 server", f"did not answer within {patience_seconds:.0f} s")
    line = stdout.readline().decode().strip()
    if not line:
        complaints.seek(0)
        last = complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
        raise StorageError("the demo's S3 server", f"ended at its start: {last or 'no reason given'}")
    return line


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask by closing the pipe, then insist."""
    cast(IO[bytes], process.stdin).close()
    for insist in (process.terminate, process.kill):
        try:
            process.wait(_FAREWELL_SECONDS)
        except subprocess.TimeoutExpired:
            insist()
        else:
            return
