"""Shards handed to labellers, dead labellers replaced, killing images isolated. Knows no pixel and no Parquet.

The driver holds shard numbers and reports, nothing that grows with the images of the bucket.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from batchdet.cluster.crew import Crew, Member, check_room
from batchdet.cluster.isolation import Suspect
from batchdet.cluster.metrics import MeteredProgress
from batchdet.cluster.paths import require_shared_paths
from batchdet.cluster.session import connected
from batchdet.config import JobConfig
from batchdet.errors import BatchdetError, ClusterError, FailureRateError, RunError, StorageError
from batchdet.labelling import SHARDS_IN_FLIGHT, RunContext, require_device
from batchdet.progress import Progress
from batchdet.records import ImageRef, ShardReport
from batchdet.storage.filesystem import open_store
from batchdet.storage.plan import read_shard

POLL_SECONDS = 1.0
"""How long the driver waits for a report before it looks at the cluster again."""

DEATHS = (RayActorError, OutOfMemoryError, NodeDiedError)
"""How Ray says that a labeller is gone: an actor ended by the node's memory monitor is no RayActorError."""


class RayRunner:
    """Labels the shards of a run on a Ray cluster."""

    def __init__(self, address: str) -> None:
        self._address = address

    @contextmanager
    def ready(self, job: JobConfig, progress: Progress) -> Iterator[None]:
        """See `batchdet.run.Runner`."""
        with connected(self._address, progress.log):
            require_shared_paths(job)
            self._demand = check_room(job.cluster, progress)
            require_device(job, self._demand.device)
            yield

    def run(self, context: RunContext, shard_ids: Sequence[int], progress: Progress) -> None:
        """See `batchdet.run.Runner`."""
        metered = MeteredProgress(progress, context.plan.counts.num_planned, len(shard_ids))
        if not shard_ids:
            return
        driver = Driver(context, shard_ids, metered, Crew(context, self._demand))
        try:
            driver.run()
        except RayTaskError:
            raise
        except RayError as error:
            raise RunError(f"the Ray cluster was lost ({_reason(error)}); run the same command again") from error
        finally:
            driver.dismiss()


@dataclass(frozen=True, slots=True)
class _Call:
    """What a result in flight will be the answer to."""

    member: Member
    kind: Literal["setup", "label", "probe"]
    shard_id: int = -1


class Driver:
    """One run on the cluster the process is connected to."""

    def __init__(self, context: RunContext, shard_ids: Sequence[int], progress: MeteredProgress, crew: Crew) -> None:
        self._context = context
        self._progress = progress
        self._crew = crew
        self._limits = context.job.limits
        self._todo: deque[int] = deque(shard_ids)
        self._suspects: deque[Suspect] = deque()
        self._attempts: Counter[int] = Counter()
        self._unfinished = set(shard_ids)
        self._poisoned: set[str] = set()
        self._calls: dict[Any, _Call] = {}
        self._setup_failures = 0
        self._backends: set[str] = set()

    def run(self) -> None:
        """Until every shard is committed or given up.

        Raises:
            BatchdetError: the run cannot go on.
        """
        while self._unfinished:
            if self._context.is_over:
                self._let_rest()
            self._staff()
            self._hand_out()
            self._collect()

    def _let_rest(self) -> None:
        """Begin nothing more; what is under way ends as it would."""
        self._unfinished -= {*self._todo, *(suspect.shard_id for suspect in self._suspects)}
        self._todo.clear()
        self._suspects.clear()

    def dismiss(self) -> None:
        """End every labeller at once."""
        self._crew.dismiss()
        self._calls.clear()

    def _staff(self) -> None:
        waiting = len(self._todo) + len(self._suspects)
        if not waiting:
            self._crew.let_go_idle()
        for member in self._crew.surplus():
            self._lose(member)
            self._todo.extendleft(sorted(member.shards, reverse=True))
            if member.suspect:
                self._suspects.appendleft(member.suspect)
        for member, setup in self._crew.hire(waiting):
            self._calls[setup] = _Call(member, "setup")
        ready = self._crew.num_ready
        self._progress.labellers(ready, wanted=max(ready, min(self._crew.fitting, len(self._unfinished))))

    def _lose(self, member: Member) -> None:
        self._crew.lose(member)
        self._calls = {ref: call for ref, call in self._calls.items() if call.member is not member}

    # -- handing out

    def _hand_out(self) -> None:
        for member in self._crew.members:
            if self._suspects and member.is_idle:
                member.suspect = self._suspects.popleft()
                self._advance(member, member.suspect)
        # One shard each before anybody gets a second, and a second only while nobody will want for a first.
        expected = min(self._crew.fitting, len(self._unfinished))
        for held in range(SHARDS_IN_FLIGHT):
            for member in self._crew.members:
                spare = held == 0 or len(self._todo) >= expected
                if self._todo and spare and member.free_places and len(member.shards) == held:
                    self._send(member, self._todo.popleft())

    def _send(self, member: Member, shard_id: int) -> None:
        member.shards.add(shard_id)
        self._calls[member.actor.label.remote(shard_id)] = _Call(member, "label", shard_id)

    def _advance(self, member: Member, suspect: Suspect) -> None:
        refs = suspect.next_probe()
        if refs is not None:
            self._calls[member.actor.probe.remote(list(refs))] = _Call(member, "probe", suspect.shard_id)
            return
        self._count_poison(suspect)
        call = member.actor.label.remote(suspect.shard_id, suspect.poison)
        self._calls[call] = _Call(member, "label", suspect.shard_id)

    def _count_poison(self, suspect: Suspect) -> None:
        self._poisoned |= suspect.poison.keys()
        allowed = self._context.plan.counts.failures_allowed(self._limits.max_failure_rate)
        if len(self._poisoned) > max(1.0, allowed):
            raise FailureRateError(
                f"{len(self._poisoned)} images end the process that labels them, more than "
                f"limits.max_failure_rate {self._limits.max_failure_rate:g} allows; last: {max(self._poisoned)}"
            )

    # -- collecting

    def _collect(self) -> None:
        done, _ = ray.wait(list(self._calls), num_returns=1, timeout=POLL_SECONDS)
        for ref in done:
            call = self._calls.pop(ref, None)
            if call is not None:
                self._settle(call, ref)

    def _settle(self, call: _Call, ref: Any) -> None:
        try:
            answer = ray.get(ref)
        except DEATHS as error:
            self._labeller_died(call, error)
        except RayTaskError as error:
            self._labeller_refused(call, error)
        else:
            self._succeeded(call, answer)

    def _succeeded(self, call: _Call, answer: ShardReport | str | None) -> None:
        member = call.member
        if call.kind == "setup":
            member.is_ready = True
            self._setup_failures = 0
            self._say_backend(str(answer))
        elif call.kind == "probe" and member.suspect:
            member.suspect.probed(survived=True)
            self._advance(member, member.suspect)
        elif isinstance(answer, ShardReport):
            self._finish(member, call.shard_id)
            self._progress.shard_committed(answer)

    def _say_backend(self, backend: str) -> None:
        if backend not in self._backends:
            self._backends.add(backend)
            self._progress.log(f"detecting with {backend}")

    def _finish(self, member: Member, shard_id: int) -> None:
        member.shards.discard(shard_id)
        member.suspect = None
        self._unfinished.discard(shard_id)

    def _labeller_refused(self, call: _Call, error: RayTaskError) -> None:
        """An exception, not a death: trouble of storage or Ray is tried again, a bug ends the run."""
        cause = error.cause
        passes = isinstance(cause, StorageError) or (
            isinstance(cause, RayError) and not isinstance(cause, RayTaskError)
        )
        if not passes:
            raise cause if isinstance(cause, BatchdetError) else error
        if call.kind == "setup":
            self._lose(call.member)
            self._count_setup_failure(str(cause), error)
            return
        suspect, call.member.suspect = call.member.suspect, None
        call.member.shards.discard(call.shard_id)
        self._count_attempt(call.shard_id)
        if self._attempts[call.shard_id] >= self._limits.max_attempts_per_shard + (suspect is not None):
            self._give_up(call.shard_id, str(cause))
        elif suspect:
            self._suspects.append(suspect)
        else:
            self._todo.append(call.shard_id)

    def _count_attempt(self, shard_id: int, *, blamed: bool = True) -> None:
        self._attempts[shard_id] += blamed
        self._progress.attempt_failed()

    def _give_up(self, shard_id: int, reason: str) -> None:
        self._unfinished.discard(shard_id)
        self._progress.log(f"shard {shard_id} stays open: {reason}")

    def _labeller_died(self, call: _Call, error: RayError) -> None:
        member = call.member
        self._lose(member)
        lost_node = _is_lost_node(error)
        self._progress.labeller_died(lost_node)
        where = f"shards {sorted(member.shards)}" if member.shards else call.kind
        self._progress.log(f"a labeller died ({'its node was lost' if lost_node else 'process ended'}) with {where}")
        if call.kind == "setup":
            if not lost_node:
                self._count_setup_failure(_reason(error), error)
        elif member.suspect:
            self._suspect_died(member.suspect, call.kind, lost_node)
        for shard_id in sorted(member.shards):
            self._count_attempt(shard_id, blamed=not lost_node)
            if self._attempts[shard_id] < self._limits.max_attempts_per_shard:
                self._todo.append(shard_id)
            else:
                self._suspects.append(Suspect(shard_id))

    def _count_setup_failure(self, reason: str, error: RayError) -> None:
        self._setup_failures += 1
        if self._setup_failures >= self._limits.max_attempts_per_shard:
            raise ClusterError(
                f"{self._setup_failures} labellers in turn could not load the model: {reason}"
            ) from error

    def _suspect_died(self, suspect: Suspect, kind: str, lost_node: bool) -> None:
        if not lost_node:
            if kind == "probe":
                suspect.probed(survived=False)
            else:
                suspect.died_whole(self._images_of(suspect.shard_id))
        if suspect.rounds > self._limits.max_attempts_per_shard:
            self._give_up(suspect.shard_id, "it ends labellers even without the images found to do so")
        else:
            self._suspects.appendleft(suspect)

    def _images_of(self, shard_id: int) -> Sequence[ImageRef]:
        job = self._context.job
        return read_shard(open_store(job.output, job.storage.output), self._context.plan, shard_id).images


def _is_lost_node(error: RayError) -> bool:
    if isinstance(error, NodeDiedError):
        return True
    return isinstance(error, RayActorError) and (error.preempted or "node has died" in str(error))


def _reason(error: RayError) -> str:
    return " ".join(str(error).split())[:300]
