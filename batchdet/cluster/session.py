"""A connection to Ray, begun and ended, and what the cluster holds. Knows nothing of labelling."""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.state import state

from batchdet.errors import ClusterError

CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 30.0

_INIT: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}


@contextmanager
def connected(address: str, say: Callable[[str], None]) -> Iterator[None]:
    """Be connected to Ray inside the block.

    Args:
        address: `local` starts a cluster on this machine; `auto` joins the one of `RAY_ADDRESS` or of `ray start`,
            else starts one; `host:port` joins that one.
        say: told in a line which cluster it is, and in another when it has no authentication.

    Raises:
        ClusterError: nothing answers at the address within some seconds, or versions do not match.
    """
    if ray.is_initialized():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    # Ray's threads print what befalls its workers on stdout, which is for results.
    with redirect_stdout(sys.stderr):
        joined = _join(address)
        _restore_sigterm(handler)
        try:
            _describe(joined, say)
            yield
        finally:
            ray.shutdown()


def living_nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster as `ray.nodes` describes them, without the dead."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def growable_nodes() -> list[dict[str, float]]:
    """Resources of one node of each kind that an autoscaler may add; empty where there is none."""
    config = state.get_cluster_config()
    groups = config.node_group_configs if config else ()
    return [dict(group.resources) for group in groups if group.max_count]


def _describe(joined: bool, say: Callable[[str], None]) -> None:
    nodes = living_nodes()
    total = {name: sum(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    where = f"joined Ray at {ray.get_runtime_context().gcs_address}" if joined else "started Ray on this machine"
    say(f"{where}: {len(nodes)} nodes, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs")
    if joined and not is_token_auth_enabled():
        say("the Ray cluster has no authentication: anyone who reaches it can run code; set RAY_AUTH_MODE=token")


def _join(address: str) -> bool:
    """Connect; whether the cluster was there before."""
    named = os.environ.get("RAY_ADDRESS") if address == "auto" else address
    if named and named not in ("auto", "local"):
        name = "RAY_ADDRESS=" if address == "auto" else "--ray "
        _require_answer(named, f"{name}{named}")
        with _ray_errors(f"{name}{named}"):
            ray.init(address=named, **_INIT)
        return True
    if address == "auto":
        try:
            with _ray_errors("--ray auto"):
                ray.init(address="auto", **_INIT)
        except ConnectionError:
            pass  # none runs here
        else:
            return True
    with _ray_errors("cannot start Ray on this machine"):
        ray.init(address="local", include_dashboard=False, **_INIT)
    return False


@contextmanager
def _ray_errors(what: str) -> Iterator[None]:
    try:
        yield
    except ConnectionError as error:
        if what == "--ray auto":
            raise
        raise ClusterError(f"{what}: {_one_line(error)}") from error
    except (RuntimeError, ValueError, OSError) as error:
        raise ClusterError(f"{what}: {_one_line(error)}") from error


def _require_answer(address: str, what: str) -> None:
    """Fail within seconds where nobody, or somebody who is not Ray, listens; `ray.init` itself may wait for ever."""
    if address.startswith(("http://", "https://")):
        raise ClusterError(f"{what} is where jobs are submitted: use `ray job submit`, or name the cluster's HOST:PORT")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"{what}: expected auto, local, off or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"{what}: no Ray cluster answers there ({_one_line(error)})") from error
    if address.startswith("ray://"):
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", f"{host}:{port}"]
    try:
        subprocess.run(command, check=True, timeout=HEALTH_SECONDS, capture_output=True)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"{what}: something listens there, but no Ray cluster answered in {HEALTH_SECONDS:.0f} s"
        ) from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace")
        if "uthenticat" in said or "RAY_AUTH" in said:
            raise ClusterError(
                f"{what}: the cluster asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN where "
                "~/.ray/auth_token does not hold it"
            ) from error
        detail = _one_line(said.strip().rpartition("\n")[2])
        raise ClusterError(f"{what}: no healthy Ray cluster there ({detail})") from error


def _restore_sigterm(handler: signal.Handlers | int | Callable[..., object] | None) -> None:
    """`ray.init` replaces the handler of SIGTERM; the program's own must stop the run in order."""
    try:
        signal.signal(signal.SIGTERM, handler)
    except ValueError:
        return  # not the main thread: ray.init has set none either


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
