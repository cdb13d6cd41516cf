"""What of Ray works: this machine's, and a cluster's nodes. Knows no storage and no job."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
from ray._private.services import find_bootstrap_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchdet import __version__
from batchdet.cluster.session import connected
from batchdet.errors import ClusterError
from batchdet.records import Fact

ANSWER_SECONDS = 30.0
_SAME_EVERYWHERE = ("ray", "torch", "torchvision", "pyarrow", "pillow", "simplejpeg", "openvino", "obstore", "numpy")


def cluster_facts(address: str) -> list[Fact]:
    """Ray's version and what a cluster is made of; starts no cluster unless `local` asks for it.

    Args:
        address: as of `--ray`: `auto`, `local`, `off` or `host:port`.
    """
    facts = [Fact("ray", "ok", ray.__version__)]
    if address == "off":
        return facts
    if address == "auto" and not _may_be_running():
        return [*facts, Fact("cluster", "ok", "none runs; `batchdet label` starts one on this machine")]
    said: list[str] = []
    try:
        with connected(address, said.append):
            facts += _cluster(address)
    except ClusterError as error:
        return [*facts, Fact("cluster", "fail", str(error))]
    return facts + [Fact("authentication", "warn", line) for line in said[1:]]


def _may_be_running() -> bool:
    return bool(os.environ.get("RAY_ADDRESS")) or find_bootstrap_address(None) is not None


def _cluster(address: str) -> Iterator[Fact]:
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    memory = total.get("memory", 0.0) / (1 << 30)
    finding = f"{len(nodes)} nodes, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs, {memory:.0f} GiB"
    yield Fact("cluster", "ok", f"{address}: {finding}")
    here = _versions()
    answers = {node["NodeID"]: _ask(node["NodeID"]) for node in nodes}
    for node in nodes:
        yield _node_fact(node, answers[node["NodeID"]], here)


def _ask(node_id: str) -> "ray.ObjectRef[dict[str, str]]":
    place = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0)(_versions)
    answer: ray.ObjectRef[dict[str, str]] = task.options(scheduling_strategy=place).remote()
    return answer


def _node_fact(node: dict[str, Any], answer: "ray.ObjectRef[dict[str, str]]", here: dict[str, str]) -> Fact:
    name = f"node {node['NodeManagerAddress']}"
    try:
        there = ray.get(answer, timeout=ANSWER_SECONDS)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().rpartition("\n")[2]
        return Fact(name, "fail", f"cannot run batchdet: {reason}")
    differing = [
        f"{package} {there.get(package)} (here {mine})" for package, mine in here.items() if there.get(package) != mine
    ]
    if differing:
        return Fact(name, "warn", f"other versions than here: {', '.join(differing)}")
    return Fact(name, "ok", f"batchdet {there['batchdet']}, python {there['python']}")


def _versions() -> dict[str, str]:
    """Runs on every node: importing this module there shows that batchdet is installed."""
    found = {"batchdet": __version__, "python": platform.python_version()}
    for package in _SAME_EVERYWHERE:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found
