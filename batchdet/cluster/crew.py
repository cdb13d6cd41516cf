"""Labellers as the driver sees them: members, calls in flight, and how Ray says one is gone. Knows no run."""

from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError

from batchdet.cluster.isolation import Suspect
from batchdet.labelling import SHARDS_IN_FLIGHT

DEATHS = (RayActorError, OutOfMemoryError, NodeDiedError)
"""How Ray says that a labeller is gone: an actor ended by the node's memory monitor is no RayActorError."""


@dataclass
class Member:
    """One labeller actor: set up or not yet, with the shards it holds."""

    actor: Any
    is_ready: bool = False
    shards: set[int] = field(default_factory=set)
    suspect: Suspect | None = None

    @property
    def free_places(self) -> int:
        """Shards it could take."""
        return 0 if self.suspect or not self.is_ready else SHARDS_IN_FLIGHT - len(self.shards)


@dataclass(frozen=True, slots=True)
class Call:
    """What a result in flight will be the answer to."""

    member: Member
    kind: str
    shard_id: int = -1


def is_lost_node(error: RayError) -> bool:
    """Whether a labeller's death is its node's."""
    if isinstance(error, NodeDiedError):
        return True
    return isinstance(error, RayActorError) and (error.preempted or "node has died" in str(error))


def living_nodes() -> list[dict[str, float]]:
    """Total resources of each living node."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def one_line(error: RayError) -> str:
    """Ray's words, shortened."""
    return " ".join(str(error).split())[:300]
