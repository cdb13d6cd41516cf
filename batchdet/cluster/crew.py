"""The labellers of a run: hired as the cluster has room, replaced, let go. Knows which shards they hold, not why."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from batchdet.cluster.capacity import Demand, labeller_demand, labellers_held, labellers_that_fit, require_room
from batchdet.cluster.isolation import Suspect
from batchdet.cluster.labeller import LABELLER_OPTIONS, Labeller
from batchdet.cluster.session import growable_nodes, living_nodes
from batchdet.config import ClusterConfig
from batchdet.labelling import SHARDS_IN_FLIGHT, Hardware, RunContext
from batchdet.progress import Progress

LOOK_SECONDS = 1.0
"""How often the cluster is asked what it holds."""


@dataclass(eq=False)
class Member:
    """One labeller actor: set up or not yet, with the shards it holds."""

    actor: Any
    is_ready: bool = False
    shards: set[int] = field(default_factory=set)
    suspect: Suspect | None = None

    @property
    def free_places(self) -> int:
        """Shards it could take now."""
        return 0 if self.suspect or not self.is_ready else SHARDS_IN_FLIGHT - len(self.shards)

    @property
    def is_idle(self) -> bool:
        """Ready, and without work."""
        return self.free_places == SHARDS_IN_FLIGHT


def check_room(config: ClusterConfig, progress: Progress) -> Demand:
    """What a labeller takes of the cluster this process is connected to.

    Raises:
        ClusterError: no labeller fits, and no autoscaler could bring a node that holds one.
    """
    nodes = _resources()
    growable = growable_nodes()
    demand = labeller_demand(config, nodes)
    require_room(config, demand, nodes, may_grow=labellers_that_fit(demand, growable) > 0)
    if not labellers_that_fit(demand, nodes):
        progress.log("no node has room for a labeller yet; waiting for the cluster to grow")
    elif not demand.gpus and config.gpus_per_labeller == "auto" and any(node.get("GPU") for node in growable):
        progress.log("no node with a GPU now: labelling on CPUs; cluster.gpus_per_labeller=1 would wait for one")
    return demand


class Crew:
    """The labellers at work."""

    def __init__(self, context: RunContext, demand: Demand) -> None:
        self._context = context
        self._demand = demand
        self._may_grow = labellers_that_fit(demand, growable_nodes()) > 0
        self._room = _Room(0, is_tight=False)
        self._looked = float("-inf")
        self.members: list[Member] = []

    @property
    def num_ready(self) -> int:
        """Labellers that have loaded their model."""
        return sum(member.is_ready for member in self.members)

    @property
    def fitting(self) -> int:
        """Labellers the job names, or the cluster holds now."""
        config = self._context.job.cluster.labellers
        room = self._look()
        if config == "auto":
            return room.fitting
        return min(config, room.fitting) if room.is_tight else config

    def hire(self, waiting_work: int) -> Sequence[tuple[Member, Any]]:
        """Begin labellers for work that has none; each comes with the reference that answers when it is set up."""
        # Labellers that wait for room are what an autoscaler sees. Unlike a request made to it they end with the
        # driver, and doubling reaches any size in a few steps.
        may_grow = self._may_grow and self._context.job.cluster.labellers == "auto" and not self._look().is_tight
        growth = max(1, self.num_ready) if may_grow else 0
        busy = sum(bool(member.shards or member.suspect) for member in self.members)
        target = min(self.fitting + growth, busy + waiting_work)
        return [self._hire_one() for _ in range(target - len(self.members))]

    def surplus(self) -> Sequence[Member]:
        """Labellers, the least busy, that keep the core for which read tasks wait: since a node was lost, say."""
        if not self._look().is_tight:
            return []
        by_work = sorted(self.members, key=lambda one: (one.suspect is None, not one.is_ready, -len(one.shards)))
        return by_work[self.fitting :]

    def let_go_idle(self) -> None:
        """End labellers without work, so that what they hold of the cluster is free."""
        for member in [member for member in self.members if member.is_idle]:
            self.lose(member)

    def lose(self, member: Member) -> None:
        """End a labeller for good; one that cannot be reached may still live and must not go on."""
        ray.kill(member.actor)
        self.members.remove(member)

    def dismiss(self) -> None:
        """End every labeller at once."""
        for member in list(self.members):
            self.lose(member)

    def _look(self) -> "_Room":
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            nodes = _resources()
            fitting = max(1, labellers_that_fit(self._demand, nodes))
            self._room = _Room(fitting, is_tight=fitting < labellers_held(self._demand, nodes))
            self._looked = time.monotonic()
        return self._room

    def _hire_one(self) -> tuple[Member, Any]:
        options = LABELLER_OPTIONS | {"num_cpus": self._demand.cpus, "num_gpus": self._demand.gpus}
        member = Member(Labeller.options(**options).remote())  # type: ignore[attr-defined]
        hardware = Hardware(self._demand.device, self._demand.threads)
        self.members.append(member)
        return member, member.actor.setup.remote(self._context, hardware, self._demand.reads_remotely)


@dataclass(frozen=True, slots=True)
class _Room:
    """What the cluster holds now.

    Attributes:
        fitting: labellers, at least 1.
        is_tight: Ray would place more, on the cores their read tasks need.
    """

    fitting: int
    is_tight: bool


def _resources() -> list[dict[str, float]]:
    return [node["Resources"] for node in living_nodes()]
