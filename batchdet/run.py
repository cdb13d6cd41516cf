"""The story of a run: open or resume it, have its shards labelled, close it. Knows no Ray and no pixels."""

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import pyarrow as pa

from batchdet import __version__
from batchdet.config import JobConfig, canonical_json
from batchdet.engine.checkpoint import load_detector
from batchdet.engine.postfilter import PostFilter
from batchdet.errors import (
    ConfigError,
    FailureRateError,
    InterruptedRunError,
    OpenShardsError,
    OutputError,
    StorageError,
)
from batchdet.labelling import RunContext
from batchdet.progress import Progress
from batchdet.records import ModelInfo, PlanCounts, RunRow, ShardReport
from batchdet.storage.filesystem import open_store
from batchdet.storage.foreign import without_secrets
from batchdet.storage.ledger import Ledger
from batchdet.storage.listing import list_images
from batchdet.storage.plan import PlanHeader, RunPlan, new_run_id
from batchdet.storage.planning import count_plan, make_plan
from batchdet.storage.registry import fetch_model

ACCEPT_FAILURES = (
    "raise the limit and run again to keep them as failed rows, which the next run tries again; --new-run begins anew"
)
SAME_FIELDS = (
    "model.score_floor",
    "model.precision",
    "model.backend",
    "plan.max_pixels",
    "plan.max_bytes",
    "reading.block_images",
    "reading.decode",
    "storage.source",
)
"""Fields of a job that change rows, beside source, model and policy."""

RECORDED_VERSIONS = ("ray", "torch", "torchvision", "pyarrow", "pillow", "numpy", "fsspec")


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


def label_bucket(job: JobConfig, runner: Runner, progress: Progress, *, new_run: bool = False) -> RunRow:
    """Label every new, changed or failed image of the source, and close the run.

    Args:
        job: what to label, with what, and where to.
        runner: where.
        progress: told what happens.
        new_run: close an open run as partial first, instead of resuming it.

    Returns:
        The run's row as written.

    Raises:
        UserError: the job, the source, the output or the model is unusable; nothing was written.
        OpenShardsError: shards are left; the same command resumes.
        FailureRateError: too many images failed; the run stays open.
        InterruptedRunError: Ctrl-C or SIGTERM.
    """
    with _output_errors(job):
        output = open_store(job.output, job.storage.output)
        output.probe_writable()
    with runner.ready(job, progress):
        return _label(job, runner, progress, Ledger(output), new_run=new_run)


def _label(job: JobConfig, runner: Runner, progress: Progress, ledger: Ledger, *, new_run: bool) -> RunRow:
    model = describe_model(job)
    plan = _open_run(job, ledger, model, progress, new_run=new_run)
    if plan.counts.num_undated:
        progress.log(f"{plan.counts.num_undated} images have no etag, size or time: a later change of them is not seen")
    committed = ledger.committed(plan.run_id)
    pending = [shard_id for shard_id in range(plan.num_shards) if shard_id not in committed]
    progress.planned(plan.run_id, plan.counts, images_done=plan.images_in(committed))
    failed = ledger.counts(plan.run_id).num_failed if committed else 0
    budget = _FailureBudget(plan.counts.failures_allowed(job.limits.max_failure_rate), progress, failed)
    started = time.monotonic()
    try:
        if pending:
            budget.check()
        runner.run(RunContext(job, plan), pending, budget)
    except KeyboardInterrupt as interrupt:
        raise InterruptedRunError(f"stopped; {_how_to_resume(ledger, plan)}") from interrupt
    seconds = time.monotonic() - started
    return _close_run(job, ledger, plan, budget.num_images / seconds if budget.num_images else 0.0)


def plan_bucket(job: JobConfig, progress: Progress) -> PlanCounts:
    """What `label_bucket` would do, counted; writes nothing and loads no model.

    Raises:
        UserError: the source or the output is unusable.
    """
    with _output_errors(job):
        ledger = Ledger(open_store(job.output, job.storage.output))
    return count_plan(_listing(job, progress), _known(ledger), job.plan)


def describe_model(job: JobConfig) -> ModelInfo:
    """Load the job's model once on this machine's CPU, and check the policy against its categories.

    Raises:
        ModelError: the reference, the weights or the categories are unusable.
        ConfigError: the policy names a category the model does not have.
    """
    files = fetch_model(job.model.reference, job.storage.source)
    info = load_detector(job.model, files, "cpu").info
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


def _open_run(job: JobConfig, ledger: Ledger, model: ModelInfo, progress: Progress, *, new_run: bool) -> RunPlan:
    """The open run this job goes on with, or a new one; open runs left behind are closed as partial."""
    rows = ledger.complete_runs()
    open_runs = ledger.open_runs()
    current = [plan for plan in open_runs if not new_run and (not rows or plan.run_id > rows[0].run_id)][:1]
    if current:
        _require_same_job(current[0], job, model)
        progress.log(f"resuming run {current[0].run_id}")
    else:
        if rows and rows[0].model_digest != model.digest:
            progress.log(f"another model than run {rows[0].run_id}: unchanged images keep the labels they have")
        if rows and rows[0].policy_digest != job.policy.digest:
            progress.log(f"another policy than run {rows[0].run_id}: unchanged images keep what was accepted then")
        current = [_begin_run(job, ledger, model, rows, progress)]
    for plan in open_runs:
        if plan.run_id != current[0].run_id:
            progress.log(f"closing run {plan.run_id} as partial")
            ledger.close(ledger.closing_row(plan, "partial", 0.0))
    return current[0]


def _begin_run(job: JobConfig, ledger: Ledger, model: ModelInfo, rows: Sequence[RunRow], progress: Progress) -> RunPlan:
    header = PlanHeader(
        run_id=new_run_id(datetime.now(UTC), ledger.run_ids()),
        source=job.source,
        previous_run_id=rows[0].run_id if rows else None,
        started_at=datetime.now(UTC),
        model=model,
        policy=job.policy.canonical,
        policy_digest=job.policy.digest,
        config=canonical_json(job.model_dump(mode="json")),
        versions=canonical_json(_versions()),
    )
    return make_plan(ledger.output, header, _listing(job, progress), _known(ledger), job.plan)


def _require_same_job(plan: RunPlan, job: JobConfig, model: ModelInfo) -> None:
    """A run is finished with what it was begun with, or its rows would not be of one kind."""
    begun, given = json.loads(plan.header.config), job.model_dump(mode="json")
    same = {
        "source": (plan.header.source, job.source),
        "model": (plan.header.model.digest, model.digest),
        "policy": (plan.header.policy, job.policy.canonical),
    } | {field: (_at(begun, field), _at(given, field)) for field in SAME_FIELDS}
    for field, (then, now) in same.items():
        if then != now:
            raise ConfigError(
                f"{field}: the open run {plan.run_id} was begun with {then}, this job has {now}; finish it with the "
                "job it was begun with, or close it as partial with --new-run"
            )


def _at(tree: Any, field: str) -> Any:
    for name in field.split("."):
        tree = tree[name]
    return tree


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


def _known(ledger: Ledger) -> Iterator[pa.RecordBatch]:
    return ledger.known_images([row.run_id for row in ledger.complete_runs()])


def _versions() -> dict[str, str]:
    found = {"batchdet": __version__, "python": platform.python_version()}
    for name in RECORDED_VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass
class _FailureBudget:
    """Passes progress on, and ends the run once so many images failed that the rest cannot mend the rate."""

    allowed: float
    progress: Progress
    num_failed: int
    num_images: int = 0

    def shard_committed(self, report: ShardReport) -> None:
        self.num_images += report.num_images
        self.num_failed += report.num_failed
        self.progress.shard_committed(report)
        self.check()

    def check(self) -> None:
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
        self.progress.labellers(alive, wanted)

    def log(self, line: str) -> None:
        self.progress.log(line)
