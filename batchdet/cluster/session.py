"""A connection to Ray, begun and ended. Knows nothing of labelling."""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled

from batchdet.errors import ClusterError

CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 20.0


@contextmanager
def connected(address: str, warn: Callable[[str], None]) -> Iterator[bool]:
    """Be connected to Ray inside the block; it is given whether the cluster was there before, and so may grow.

    Args:
        address: `local` starts a cluster on this machine; `auto` joins the one of `RAY_ADDRESS` or of `ray start`,
            else starts one; `host:port` joins that one.
        warn: told in one line when an existing cluster has no authentication.

    Raises:
        ClusterError: nothing answers at the address within some seconds, or versions do not match.
    """
    # Ray prints what becomes of its workers to stdout, where only results belong.
    with redirect_stdout(sys.stderr):
        yield from _connected(address, warn)


def _connected(address: str, warn: Callable[[str], None]) -> Iterator[bool]:
    if ray.is_initialized():
        yield True
        return
    handler = signal.getsignal(signal.SIGTERM)
    joined = _join(address)
    if joined and not is_token_auth_enabled():
        warn("the Ray cluster has no authentication: anyone who reaches it can run code; set RAY_AUTH_MODE=token")
    _restore_sigterm(handler)
    try:
        yield joined
    finally:
        ray.shutdown()


def _join(address: str) -> bool:
    """Connect; whether the cluster was there before."""
    if address == "local":
        _start_local()
        return False
    if address == "auto":
        try:
            _init("auto")
        except ConnectionError:
            if "RAY_ADDRESS" in os.environ:
                raise ClusterError(f"no Ray cluster answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']}") from None
            _start_local()
            return False
        return True
    _require_answer(address)
    try:
        _init(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"--ray {address}: {_one_line(error)}") from error
    return True


def _start_local() -> None:
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(f"cannot start Ray on this machine: {_one_line(error)}") from error


def _init(address: str) -> None:
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)


def _require_answer(address: str) -> None:
    """Fail within seconds where nobody, or somebody who is not Ray, listens; `ray.init` itself may wait for ever."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"--ray {address}: expected auto, local, off or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(f"--ray {address}: no Ray cluster answers there ({_one_line(error)})") from error
    if address.startswith("ray://"):
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", f"{host}:{port}"]
    try:
        subprocess.run(command, check=True, timeout=HEALTH_SECONDS, capture_output=True)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"--ray {address}: something listens there, but no Ray cluster answered in {HEALTH_SECONDS:.0f} s"
        ) from error
    except subprocess.CalledProcessError as error:
        detail = _one_line(error.stderr.decode(errors="replace").strip().rpartition("\n")[2])
        raise ClusterError(f"--ray {address}: no healthy Ray cluster there ({detail})") from error


def _restore_sigterm(handler: signal.Handlers | int | Callable[..., object] | None) -> None:
    """`ray.init` replaces the handler of SIGTERM; the program's own must stop the run in order."""
    try:
        signal.signal(signal.SIGTERM, handler)
    except ValueError:
        return  # not the main thread: ray.init has set none either


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
