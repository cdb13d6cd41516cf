"""The story of a run: open or resume it, have its shards labelled, close it. Knows no Ray and no pixels."""

import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, Protocol

import pyarrow as pa

from batchdet import __version__
from batchdet.config import JobConfig, canonical_json
from batchdet.earlier import Labelled, comparison_with, differences, other_job, require_same_job
from batchdet.engine.backends.choice import require_backend
from batchdet.engine.checkpoint import load_model
from batchdet.engine.postfilter import PostFilter
from batchdet.errors import (
    DownloadError,
    FailureRateError,
    InterruptedRunError,
    OpenShardsError,
    OutputError,
    StorageError,
)
from batchdet.labelling import RunContext
from batchdet.profiling import StageTotals, write_profile
from batchdet.progress import Progress
from batchdet.publishing import publish_complete, require_publishable, told
from batchdet.records import ModelInfo, PlanCounts, RunRow, ShardReport
from batchdet.storage.classify import Comparison
from batchdet.storage.filesystem import open_store
from batchdet.storage.foreign import without_secrets
from batchdet.storage.lease import Lease, Terms, held
from batchdet.storage.ledger import Ledger
from batchdet.storage.listing import list_images, names_images
from batchdet.storage.plan import PlanHeader, RunPlan, new_run_id
from batchdet.storage.planning import count_plan, make_plan, refuse_vanishing
from batchdet.storage.registry import fetch_model

ACCEPT_FAILURES = (
    "raise the limit and run again to keep them as failed rows, which the next run tries again; --new-run begins anew"
)

RECORDED_VERSIONS = (
    "ray",
    "torch",
    "torchvision",
    "openvino",
    "onnxruntime",
    "pyarrow",
    "pillow",
    "simplejpeg",
    "numpy",
    "fsspec",
)


Listing = Iterable[pa.RecordBatch]
"""Listed images."""


@dataclass(frozen=True, slots=True)
class Manner:
    """What is asked of one run, beside its job.

    Attributes:
        open_run: what becomes of a run that is open: it is resumed, and a job that cannot is refused; it is resumed, or
            given up where this job cannot; it is given up. A run that is given up is closed as partial.
        profile: write time lines of the labellers and a summary to the output, see `profiling`.
        steal_lease: take the output from whoever holds it.
        listing: batches of `schema.LISTING`: the images of the source to label; None for all of them.
    """

    open_run: Literal["resume", "resume_own", "give_up"] = "resume"
    profile: bool = False
    steal_lease: bool = False
    listing: Listing | None = None


class Runner(Protocol):
    """Where the shards of a run are labelled."""

    def ready(self, job: JobConfig, progress: Progress) -> AbstractContextManager[None]:
        """Be able to `run` inside the block; what cannot work is said here, before anything is listed or written.

        Raises:
            UserError: the cluster cannot be reached or has no room.
        """

    def run(self, context: RunContext, shard_ids: Sequence[int], progress: Progress) -> None:
        """Label and commit the shards; return when none is left that can be labelled.

        Raises:
            UserError, RunError: the run cannot go on; committed shards stay.
        """


def label_bucket(
    job: JobConfig,
    runner: Runner,
    progress: Progress,
    manner: Manner = Manner(),
) -> RunRow:
    """Label every new, changed or failed image of the source, and close the run.

    Args:
        job: what to label, with what, and where to.
        runner: where.
        progress: told what happens.
        manner: what is asked of this run, beside the job.

    Returns:
        The run's row as written.

    Raises:
        UserError: the job, the source, the output or the model is unusable; nothing was written.
        OutputHeldError: another run holds the output, or took it meanwhile.
        OpenShardsError: shards are left; the same command resumes.
        FailureRateError: too many images failed; the run stays open.
        InterruptedRunError: Ctrl-C or SIGTERM.
    """
    deadline = None if job.limits.max_hours is None else time.time() + 3600 * job.limits.max_hours
    with _output_errors(job):
        output = open_store(job.output, job.storage.output)
        output.probe_writable()
    if job.publish is not None:
        require_publishable(output, job.publish)
    terms = Terms(job.limits.lease_seconds, manner.steal_lease)
    with held(output, "label", terms, progress.log) as lease, runner.ready(job, progress):
        plan = _open_run(job, Ledger(output), progress, manner)
        lease.require()
        row = _label(RunContext(job, plan, manner.profile, deadline), runner, progress, Ledger(output), lease)
        if job.publish is not None and row.status == "complete":
            progress.log(told(publish_complete(output, job.publish, row.run_id)))
        return row


def _label(context: RunContext, runner: Runner, progress: Progress, ledger: Ledger, lease: Lease) -> RunRow:
    job, plan = context.job, context.plan
    if plan.counts.num_undated:
        progress.log(f"{plan.counts.num_undated} images have no etag, size or time: a later change of them is not seen")
    ledger.commit_deleted(plan)
    committed = ledger.committed(plan.run_id)
    pending = [shard_id for shard_id in range(plan.num_shards) if shard_id not in committed]
    progress.planned(plan.run_id, plan.counts, images_done=plan.images_to_label(committed))
    failed = ledger.counts(plan.run_id).num_failed if committed else 0
    allowed = plan.counts.failures_allowed(job.limits.max_failure_rate)
    budget = _FailureBudget(allowed, progress, failed, StageTotals(), lease)
    started = time.monotonic()
    try:
        if pending:
            budget.check()
        runner.run(context, pending, budget)
    except KeyboardInterrupt as interrupt:
        raise InterruptedRunError(f"stopped; {_how_to_resume(ledger, plan)}") from interrupt
    seconds = time.monotonic() - (budget.began or started)
    lease.confirm()
    try:
        pace = budget.totals.images / seconds if budget.totals.images else 0.0
        return _stop_run(context, ledger, progress, pace) or _close_run(job, ledger, plan, pace)
    finally:
        _tell_stages(context, budget.totals, seconds, progress, ledger)


def _tell_stages(context: RunContext, totals: StageTotals, seconds: float, progress: Progress, ledger: Ledger) -> None:
    """Where the labellers' time went: a line of every run, more of a profiled one."""
    if not totals.images:
        return
    lines = [totals.labellers_line()]
    if totals.copied:
        lines.append(f"{totals.copied:,} images hold bytes that were labelled before: their labels were copied")
    if context.profile:
        try:
            lines = write_profile(ledger.output, context.plan.run_id, totals, seconds)
        except StorageError as error:
            lines.append(f"profile not written: {error}")
    for line in lines:
        progress.log(line)


def plan_bucket(job: JobConfig, progress: Progress) -> PlanCounts:
    """What `label_bucket` would plan, counted; writes nothing. Loads the model if there are labels to compare with.

    Raises:
        UserError: the source, the output or the model is unusable, or the listing looks broken.
    """
    with _output_errors(job):
        ledger = Ledger(open_store(job.output, job.storage.output))
        rows = ledger.complete_runs()
    labelled = [Labelled.of_row(row) for row in rows]
    comparison = comparison_with(job, _model_to_compare(job, progress), labelled, ledger) if rows else Comparison()
    counts, num_known = count_plan(_listing(job, progress), _known(ledger, rows), job.plan, comparison)
    refuse_vanishing(counts, num_known, job.plan, job.source)
    _tell_deleted(job, counts, progress)
    return counts


def _model_to_compare(job: JobConfig, progress: Progress) -> ModelInfo | None:
    """The job's model; None, and a line that says so, where its weights are not on this machine."""
    try:
        return describe_model(job)
    except DownloadError as error:
        progress.log(f"{error}; so stale images are counted as unchanged here")
        return None


def describe_model(job: JobConfig) -> ModelInfo:
    """Load the job's model once on this machine's CPU, and check the policy against its categories.

    Raises:
        ModelError: the reference, the weights, the categories or the backend are unusable.
        ConfigError: the policy names a category the model does not have.
    """
    files = fetch_model(job.model.reference, job.storage.source)
    require_backend(job.model.backend, job.model.precision)
    _, info = load_model(job.model, files)
    PostFilter(job.policy, info.categories, job.model.score_floor)
    return info


@contextmanager
def _output_errors(job: JobConfig) -> Iterator[None]:
    """An output that cannot be used from the start is a mistake of the job's."""
    try:
        yield
    except StorageError as error:
        raise OutputError(
            f"output {without_secrets(job.output)}: {error.reason}; name a folder that can be written"
        ) from error


def _open_run(job: JobConfig, ledger: Ledger, progress: Progress, manner: Manner) -> RunPlan:
    """The run this job goes on with, or a new one; open runs left behind are closed as partial."""
    model = describe_model(job)
    closed, open_runs = ledger.run_rows(), ledger.open_runs()
    rows = [row for row in closed if row.status == "complete"]
    last = rows[0].run_id if rows else ""
    current = _resumable(job, model, ledger, [plan for plan in open_runs if plan.run_id > last], manner)
    if current is not None:
        progress.log(f"resuming run {current.run_id}")
    else:
        for line in differences(job, model, rows[0]) if rows else ():
            progress.log(line)
        header = _new_header(job, ledger, model, rows)
        listed = _listing(job, progress) if manner.listing is None else manner.listing
        labelled = [*map(Labelled.of_row, closed), *map(Labelled.of_plan, open_runs)]
        comparison = comparison_with(job, model, labelled, ledger, is_whole=manner.listing is None)
        current = make_plan(ledger.output, header, listed, _known(ledger, rows), job.plan, comparison)
        _tell_deleted(job, current.counts, progress)
    for plan in open_runs:
        if plan.run_id != current.run_id:
            progress.log(f"closing run {plan.run_id} as partial")
            ledger.close(ledger.closing_row(plan, "partial", 0.0))
    return current


def _resumable(
    job: JobConfig, model: ModelInfo, ledger: Ledger, open_runs: Sequence[RunPlan], manner: Manner
) -> RunPlan | None:
    """The newest open run, or else the one that its time ended, if this job goes on with it."""
    if manner.open_run == "give_up":
        return None
    # A run made of committed rows labels nothing: whoever began it goes on with it.
    newest = next((plan for plan in open_runs if plan.header.derived is None), None)
    if newest is not None and manner.open_run == "resume":
        require_same_job(newest, job, model)
    candidate = newest or ledger.stopped_run()
    return candidate if candidate is not None and other_job(candidate, job, model) is None else None


def _tell_deleted(job: JobConfig, counts: PlanCounts, progress: Progress) -> None:
    """A folder shows what is gone; a manifest only what it does not name."""
    if counts.num_deleted and names_images(job.source):
        progress.log(
            f"{counts.num_deleted:,} known images are not in the manifest {job.source} and count as deleted; if it "
            "names a part of the images, --no-delete (plan.delete_missing: false) keeps them"
        )


def _new_header(job: JobConfig, ledger: Ledger, model: ModelInfo, rows: Sequence[RunRow]) -> PlanHeader:
    return PlanHeader(
        run_id=new_run_id(datetime.now(UTC), ledger.run_ids()),
        source=job.source,
        previous_run_id=rows[0].run_id if rows else None,
        started_at=datetime.now(UTC),
        model=model,
        policy=job.policy.canonical,
        policy_digest=job.policy.digest,
        config=canonical_json(job.model_dump(mode="json")),
        versions=canonical_json(recorded_versions()),
    )


def _stop_run(context: RunContext, ledger: Ledger, progress: Progress, images_per_second: float) -> RunRow | None:
    """The row of a run that its time ended; None where no shard is left."""
    plan = context.plan
    if not context.is_over or len(ledger.committed(plan.run_id)) == plan.num_shards:
        return None
    progress.log(f"limits.max_hours is over: {_how_to_resume(ledger, plan)}")
    row = ledger.closing_row(plan, "partial", images_per_second)
    ledger.close(row)
    return row


def _close_run(job: JobConfig, ledger: Ledger, plan: RunPlan, images_per_second: float) -> RunRow:
    num_open = plan.num_shards - len(ledger.committed(plan.run_id))
    if num_open:
        raise OpenShardsError(f"{num_open} of {plan.num_shards} shards are open; {_how_to_resume(ledger, plan)}")
    row = ledger.closing_row(plan, "complete", images_per_second)
    if row.num_failed > plan.counts.failures_allowed(job.limits.max_failure_rate):
        failures = ledger.counts(plan.run_id).failures
        worst = ", ".join(f"{code} {count}" for code, count in sorted(failures.items(), key=lambda kv: -kv[1])[:3])
        raise FailureRateError(
            f"run {plan.run_id}: {row.num_failed} of {plan.counts.num_planned} images failed ({worst}), more than "
            f"limits.max_failure_rate {job.limits.max_failure_rate:g} allows; the run stays open: {ACCEPT_FAILURES}"
        )
    ledger.close(row)
    return row


def _how_to_resume(ledger: Ledger, plan: RunPlan) -> str:
    done = len(ledger.committed(plan.run_id))
    return f"run {plan.run_id} has {done} of {plan.num_shards} shards committed; run the same command again to resume"


def _listing(job: JobConfig, progress: Progress) -> Iterator[pa.RecordBatch]:
    return list_images(job.source, job.storage.source, job.plan.extensions, progress.listing, _skipped(job))


def _skipped(job: JobConfig) -> str | None:
    """The output, where it may lie inside the source; with other options the same path may be another bucket."""
    return job.output if job.storage.source == job.storage.output else None


def _known(ledger: Ledger, rows: Sequence[RunRow]) -> Iterator[pa.RecordBatch]:
    return ledger.known_images([row.run_id for row in rows])


def recorded_versions() -> dict[str, str]:
    """Versions of what makes rows, by name, as a run records them."""
    found = {"batchdet": __version__, "python": platform.python_version()}
    for name in RECORDED_VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass
class _FailureBudget:
    """Passes progress on; ends the run once the failures cannot be mended by the rest, or the output is lost."""

    allowed: float
    progress: Progress
    num_failed: int
    totals: StageTotals
    lease: Lease
    began: float | None = None
    """When the first labeller had loaded its model; on the monotonic clock."""

    def shard_committed(self, report: ShardReport) -> None:
        self.totals.add(report)
        self.num_failed += report.num_failed
        self.progress.shard_committed(report)
        self.check()

    def check(self) -> None:
        self.lease.require()
        if self.num_failed > self.allowed:
            raise FailureRateError(
                f"{self.num_failed} images failed already, and limits.max_failure_rate allows {int(self.allowed)} in "
                f"this run; committed shards stay: {ACCEPT_FAILURES}"
            )

    def listing(self, keys: int) -> None:
        self.progress.listing(keys)

    def planned(self, run_id: str, counts: PlanCounts, images_done: int) -> None:
        self.progress.planned(run_id, counts, images_done)

    def labellers(self, alive: int, wanted: int) -> None:
        if alive and self.began is None:
            self.began = time.monotonic()
        self.progress.labellers(alive, wanted)

    def log(self, line: str) -> None:
        self.progress.log(line)
