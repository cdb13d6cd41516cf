"""How many labellers fit on a cluster. Pure arithmetic: knows no actor and no shard."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchdet.config import ClusterConfig
from batchdet.errors import ClusterError

Resources = Mapping[str, float]

_ROUNDING = 1e-9
"""Keeps 0.1 + 0.2 from being more than 0.3."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one labeller takes.

    Attributes:
        cpus, gpus: Ray's logical resources.
        threads: torch's and reading threads inside the labeller.
        reads_remotely: its images are read by Ray tasks, not by its own threads.
        cpus_per_reader: cores of one such task.
    """

    cpus: float
    gpus: float
    threads: int
    reads_remotely: bool
    cpus_per_reader: float

    @property
    def device(self) -> str:
        """Where its model runs."""
        return "cuda" if self.gpus > 0 else "cpu"


def labeller_demand(config: ClusterConfig, nodes: Sequence[Resources]) -> Demand:
    """Fill in what the job leaves to `auto`.

    Args:
        config: the job's `cluster` section.
        nodes: total resources of each living node.
    """
    has_gpus = any(node.get("GPU", 0) > 0 for node in nodes)
    gpus = float(has_gpus) if config.gpus_per_labeller == "auto" else config.gpus_per_labeller
    cpus = 1.0 if config.cpus_per_labeller == "auto" else config.cpus_per_labeller
    spare = not nodes or sum(node.get("CPU", 0) for node in nodes) >= cpus + config.cpus_per_reader
    reads_remotely = gpus > 0 and spare if config.readers == "auto" else config.readers == "tasks"
    return Demand(cpus, gpus, max(1, math.floor(cpus)), reads_remotely, config.cpus_per_reader)


def labellers_that_fit(demand: Demand, nodes: Sequence[Resources]) -> int:
    """Labellers the nodes hold; where images are read by tasks, a core of the cluster is left for those.

    Each CPU labeller leaves room for one read task; GPU labellers, which would idle otherwise, together for one.
    """
    if not demand.reads_remotely:
        return labellers_held(demand, nodes)
    if demand.gpus == 0:
        return _held(demand.cpus + demand.cpus_per_reader, 0, nodes)
    fitting = labellers_held(demand, nodes)
    while fitting and not _leaves_reader(fitting, demand, nodes):
        fitting -= 1
    return fitting


def require_room(config: ClusterConfig, demand: Demand, nodes: Sequence[Resources], may_grow: bool) -> None:
    """Refuse a job that would wait for ever.

    Args:
        config: the job's `cluster` section.
        demand: what one labeller takes.
        nodes: total resources of each living node.
        may_grow: an autoscaler may bring nodes.

    Raises:
        ClusterError: no labeller fits and none ever will, or labellers leave no core for the read tasks they wait for.
    """
    held = labellers_held(demand, nodes)
    if not held and not may_grow:
        raise ClusterError(
            f"no node holds a labeller of {demand.cpus:g} CPUs and {demand.gpus:g} GPUs; lower "
            "cluster.cpus_per_labeller or cluster.gpus_per_labeller"
        )
    wanted = 1 if config.labellers == "auto" else config.labellers
    if demand.reads_remotely and wanted <= held and not _leaves_reader(wanted, demand, nodes):
        cores = sum(node.get("CPU", 0) for node in nodes)
        raise ClusterError(
            f"cluster.labellers {wanted} × cpus_per_labeller {demand.cpus:g} leave no core of {cores:g} for "
            f"read tasks of {demand.cpus_per_reader:g}; lower cluster.labellers or set cluster.readers=threads"
        )


def _leaves_reader(labellers: int, demand: Demand, nodes: Sequence[Resources]) -> bool:
    cores = sum(node.get("CPU", 0) for node in nodes)
    return labellers * demand.cpus + demand.cpus_per_reader <= cores + _ROUNDING


def labellers_held(demand: Demand, nodes: Sequence[Resources]) -> int:
    """Labellers Ray would place on the nodes, whatever that leaves to read tasks."""
    return _held(demand.cpus, demand.gpus, nodes)


def _held(cpus: float, gpus: float, nodes: Sequence[Resources]) -> int:
    return sum(_fit(node, cpus, gpus) for node in nodes)


def _fit(node: Resources, cpus: float, gpus: float) -> int:
    counts = [node.get(name, 0) / amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0]
    return math.floor(min(counts) + _ROUNDING) if counts else 0
