"""Shards handed to labellers, dead labellers replaced, killing images isolated. Knows no pixel and no Parquet.

The driver holds shard numbers and reports, nothing that grows with the images of the bucket.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from batchdet.cluster.capacity import labeller_demand, labellers_held, labellers_that_fit, require_room
from batchdet.cluster.crew import DEATHS, Call, Member, is_lost_node, living_nodes, one_line
from batchdet.cluster.isolation import Suspect
from batchdet.cluster.labeller import LABELLER_OPTIONS, Labeller
from batchdet.cluster.session import connected
from batchdet.errors import BatchdetError, ClusterError, FailureRateError, RunError, StorageError
from batchdet.labelling import SHARDS_IN_FLIGHT, Hardware, RunContext
from batchdet.progress import Progress
from batchdet.records import ImageRef, ShardReport
from batchdet.storage.filesystem import open_store
from batchdet.storage.plan import read_shard

POLL_SECONDS = 1.0
"""How long the driver waits for a report before it looks at the cluster again."""


class RayRunner:
    """Labels the shards of a run on a Ray cluster."""

    def __init__(self, address: str) -> None:
        self._address = address

    def run(self, context: RunContext, shard_ids: Sequence[int], progress: Progress) -> None:
        """See `batchdet.labelling.Runner`."""
        if not shard_ids:
            return
        with connected(self._address, progress.log) as may_grow:
            driver = Driver(context, shard_ids, progress, may_grow)
            try:
                driver.run()
            except RayTaskError:
                raise
            except RayError as error:
                raise RunError(f"the Ray cluster was lost ({one_line(error)}); run the same command again") from error
            finally:
                driver.dismiss()


class Driver:
    """One run on the cluster the process is connected to."""

    def __init__(self, context: RunContext, shard_ids: Sequence[int], progress: Progress, may_grow: bool) -> None:
        self._context = context
        self._progress = progress
        self._limits = context.job.limits
        self._todo: deque[int] = deque(shard_ids)
        self._suspects: deque[Suspect] = deque()
        self._attempts: Counter[int] = Counter()
        self._unfinished = set(shard_ids)
        self._poisoned: set[str] = set()
        self._crew: list[Member] = []
        self._calls: dict[Any, Call] = {}
        self._setup_deaths = 0
        self._may_grow = may_grow
        self._expected = 0
        nodes = living_nodes()
        self._demand = labeller_demand(context.job.cluster, nodes)
        require_room(context.job.cluster, self._demand, nodes, may_grow)
        if not labellers_that_fit(self._demand, nodes):
            progress.log("no node has room for a labeller yet; waiting for the cluster to grow")

    def run(self) -> None:
        """Until every shard is committed or given up.

        Raises:
            BatchdetError: the run cannot go on.
        """
        while self._unfinished:
            self._hire()
            self._hand_out()
            self._collect()

    def dismiss(self) -> None:
        """End every labeller at once."""
        for member in self._crew:
            ray.kill(member.actor)
        self._crew.clear()
        self._calls.clear()

    # -- the crew

    def _hire(self) -> None:
        """Bring the crew to the size the cluster holds now, and ask for more where more may come."""
        nodes = living_nodes()
        config = self._context.job.cluster.labellers
        fitting = max(1, labellers_that_fit(self._demand, nodes))
        wanted = fitting if config == "auto" else config
        # One labeller more would take the core its read tasks wait for; after a lost node, one may have.
        is_tight = fitting < labellers_held(self._demand, nodes)
        if is_tight:
            wanted = min(wanted, fitting)
            self._dismiss_surplus(fitting)
        ready = sum(member.is_ready for member in self._crew)
        self._expected = min(wanted, len(self._unfinished))
        # Labellers that wait for room are what an autoscaler sees. Unlike a request made to it, they end with the
        # driver, and doubling reaches any size in a few steps.
        waiting = max(1, ready) if config == "auto" and self._may_grow and not is_tight else 0
        for _ in range(min(wanted + waiting, len(self._unfinished)) - len(self._crew)):
            self._hire_one()
        self._progress.labellers(ready, wanted=max(self._expected, ready))

    def _hire_one(self) -> None:
        options = LABELLER_OPTIONS | {"num_cpus": self._demand.cpus, "num_gpus": self._demand.gpus}
        member = Member(Labeller.options(**options).remote())  # type: ignore[attr-defined]
        hardware = Hardware(self._demand.device, self._demand.threads)
        setup = member.actor.setup.remote(self._context, hardware, self._demand.reads_remotely)
        self._calls[setup] = Call(member, "setup")
        self._crew.append(member)

    def _dismiss_surplus(self, fitting: int) -> None:
        while len(self._crew) > fitting:
            member = min(self._crew, key=lambda one: (one.suspect is not None, one.is_ready, len(one.shards)))
            self._lose(member)
            self._todo.extendleft(sorted(member.shards, reverse=True))
            if member.suspect:
                self._suspects.appendleft(member.suspect)

    def _lose(self, member: Member) -> None:
        # An actor that cannot be reached may still live; it must not go on beside its replacement.
        ray.kill(member.actor)
        self._crew = [other for other in self._crew if other is not member]
        self._calls = {ref: call for ref, call in self._calls.items() if call.member is not member}

    # -- handing out

    def _hand_out(self) -> None:
        for member in self._crew:
            if self._suspects and member.free_places == SHARDS_IN_FLIGHT:
                member.suspect = self._suspects.popleft()
                self._advance(member, member.suspect)
        # One shard each before anybody gets a second, and a second only while nobody will want for a first.
        for held in range(SHARDS_IN_FLIGHT):
            for member in self._crew:
                spare = held == 0 or len(self._todo) >= self._expected
                if self._todo and spare and member.free_places and len(member.shards) == held:
                    self._send(member, self._todo.popleft())

    def _send(self, member: Member, shard_id: int) -> None:
        member.shards.add(shard_id)
        self._calls[member.actor.label.remote(shard_id)] = Call(member, "label", shard_id)

    def _advance(self, member: Member, suspect: Suspect) -> None:
        refs = suspect.next_probe()
        if refs is not None:
            self._calls[member.actor.probe.remote(list(refs))] = Call(member, "probe", suspect.shard_id)
            return
        self._count_poison(suspect)
        call = member.actor.label.remote(suspect.shard_id, suspect.poison)
        self._calls[call] = Call(member, "label", suspect.shard_id)

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

    def _settle(self, call: Call, ref: Any) -> None:
        try:
            answer = ray.get(ref)
        except DEATHS as error:
            self._labeller_died(call, error)
        except RayTaskError as error:
            self._labeller_refused(call, error)
        else:
            self._succeeded(call, answer)

    def _succeeded(self, call: Call, answer: ShardReport | None) -> None:
        member = call.member
        if call.kind == "setup":
            member.is_ready = True
            self._setup_deaths = 0
        elif call.kind == "probe" and member.suspect:
            member.suspect.probed(survived=True)
            self._advance(member, member.suspect)
        elif answer is not None:
            self._finish(member, call.shard_id)
            self._progress.shard_committed(answer)

    def _finish(self, member: Member, shard_id: int) -> None:
        member.shards.discard(shard_id)
        member.suspect = None
        self._unfinished.discard(shard_id)

    def _labeller_refused(self, call: Call, error: RayTaskError) -> None:
        """An exception, not a death: trouble of storage or Ray leaves the shard for another try, a bug ends the run."""
        cause = error.cause
        passes = isinstance(cause, StorageError) or (
            isinstance(cause, RayError) and not isinstance(cause, RayTaskError)
        )
        if call.kind != "label" or not passes:
            raise cause if isinstance(cause, BatchdetError) else error
        call.member.shards.discard(call.shard_id)
        call.member.suspect = None
        self._attempts[call.shard_id] += 1
        if self._attempts[call.shard_id] < self._limits.max_attempts_per_shard:
            self._todo.append(call.shard_id)
            return
        self._give_up(call.shard_id, str(cause))

    def _give_up(self, shard_id: int, reason: str) -> None:
        self._unfinished.discard(shard_id)
        self._progress.log(f"shard {shard_id} stays open: {reason}")

    def _labeller_died(self, call: Call, error: RayError) -> None:
        member = call.member
        self._lose(member)
        lost_node = is_lost_node(error)
        where = f"shards {sorted(member.shards)}" if member.shards else call.kind
        self._progress.log(f"a labeller died ({'its node was lost' if lost_node else 'process ended'}) with {where}")
        if call.kind == "setup":
            self._count_setup_death(error, lost_node)
        elif member.suspect:
            self._suspect_died(member.suspect, call.kind, lost_node)
        for shard_id in sorted(member.shards):
            self._attempts[shard_id] += 0 if lost_node else 1
            if self._attempts[shard_id] < self._limits.max_attempts_per_shard:
                self._todo.append(shard_id)
            else:
                self._suspects.append(Suspect(shard_id))

    def _count_setup_death(self, error: RayError, lost_node: bool) -> None:
        self._setup_deaths += 0 if lost_node else 1
        if self._setup_deaths >= self._limits.max_attempts_per_shard:
            raise ClusterError(
                f"{self._setup_deaths} labellers in turn died while loading the model: {one_line(error)}"
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
