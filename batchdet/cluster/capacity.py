"""How many labellers fit on a cluster. Pure arithmetic: knows no actor and no shard."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchdet.config import ClusterConfig
from batchdet.errors import ClusterError

Resources = Mapping[str, float]


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
    reads_remotely = gpus > 0 if config.readers == "auto" else config.readers == "tasks"
    return Demand(cpus, gpus, max(1, math.floor(cpus)), reads_remotely, config.cpus_per_reader)


def labellers_that_fit(demand: Demand, nodes: Sequence[Resources]) -> int:
    """Labellers the nodes hold; where images are read by tasks, each CPU labeller leaves room for one of those."""
    cpus = demand.cpus + (demand.cpus_per_reader if demand.reads_remotely and demand.gpus == 0 else 0)
    return sum(_fit(node, cpus, demand.gpus) for node in nodes)


def require_room(config: ClusterConfig, demand: Demand, nodes: Sequence[Resources]) -> None:
    """Refuse a job whose labellers would leave no core for the read tasks they wait for.

    Raises:
        ClusterError
    """
    if not demand.reads_remotely or config.labellers == "auto" or not nodes:
        return
    cores = sum(node.get("CPU", 0) for node in nodes)
    if config.labellers * demand.cpus + demand.cpus_per_reader > cores:
        raise ClusterError(
            f"cluster.labellers {config.labellers} × cpus_per_labeller {demand.cpus:g} leave no core of {cores:g} for "
            f"read tasks of {demand.cpus_per_reader:g}; lower cluster.labellers or set cluster.readers=threads"
        )


def _fit(node: Resources, cpus: float, gpus: float) -> int:
    counts = [node.get(name, 0) / amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0]
    # The small addend keeps 1 / 0.1 from being 9.
    return math.floor(min(counts) + 1e-9) if counts else 0
