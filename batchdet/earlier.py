"""A job beside the runs before it: which it may finish, whose labels it may keep. Labels and lists nothing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from batchdet.config import EXACT_SETTINGS, SAME_FIELDS, JobConfig, recorded_at, value_at
from batchdet.errors import ConfigError
from batchdet.records import ModelInfo, RunRow
from batchdet.storage.classify import Comparison
from batchdet.storage.ledger import Ledger
from batchdet.storage.listing import covers
from batchdet.storage.plan import RunPlan


@dataclass(frozen=True, slots=True)
class Labelled:
    """A run that committed labels, whether it came to its end or was left behind."""

    run_id: str
    model_digest: str
    config: str

    @classmethod
    def of_row(cls, row: RunRow) -> "Labelled":
        """A closed run."""
        return cls(row.run_id, row.model_digest, row.config)

    @classmethod
    def of_plan(cls, plan: RunPlan) -> "Labelled":
        """An open run."""
        return cls(plan.run_id, plan.header.model.digest, plan.header.config)


def comparison_with(
    job: JobConfig, model: ModelInfo | None, runs: Sequence[Labelled], ledger: Ledger, *, is_whole: bool = True
) -> Comparison:
    """How the images of runs stand to a run of this job.

    Args:
        job: to label with.
        model: the job's; None where it is not known here.
        runs: that committed labels.
        ledger: of the output.
        is_whole: the listing is; of a partial one nothing is taken for deleted.
    """
    is_covered = covers(job.source, job.storage.source, job.plan.extensions) if is_whole else None
    if model is None:
        return Comparison(covers=is_covered)
    same = [run.run_id for run in runs if run.model_digest == model.digest and _same_settings(run, job)]
    return Comparison(
        same_model=frozenset(same),
        covers=is_covered,
        labelled_bytes=partial(ledger.labelled_bytes, same) if same else None,
    )


def _same_settings(run: Labelled, job: JobConfig) -> bool:
    """Whether a run's labels hold what this job's settings would give; a lower floor's hold those of a higher one."""
    then, now = json.loads(run.config), job.model_dump(mode="json")
    return recorded_at(then, "model.score_floor", 1.0) <= job.model.score_floor and all(
        recorded_at(then, field, usual) == value_at(now, field) for field, usual in EXACT_SETTINGS.items()
    )


def differences(job: JobConfig, model: ModelInfo, last: RunRow) -> list[str]:
    """What of a job is not as it was in the last run, and what that means for unchanged images; a line each."""
    lines = []
    if last.model_digest != model.digest:
        what = "are labelled again" if job.plan.relabel_stale else "keep the labels they have (plan.relabel_stale)"
        lines.append(f"another model than run {last.run_id}: unchanged images {what}")
    if last.policy_digest != job.policy.digest:
        lines.append(
            f"another policy than run {last.run_id}: unchanged images keep what was accepted then; "
            "`batchdet refilter` applies the policy to what is stored"
        )
    return lines


def require_same_job(plan: RunPlan, job: JobConfig, model: ModelInfo) -> None:
    """A run is finished with what it was begun with, or its rows would not be of one kind.

    Raises:
        ConfigError: the job would make other rows; names the field.
    """
    difference = other_job(plan, job, model)
    if difference is not None:
        raise ConfigError(
            f"{difference}; finish it with the job it was begun with, or close it as partial with --new-run"
        )


def other_job(plan: RunPlan, job: JobConfig, model: ModelInfo) -> str | None:
    """How this job would make other rows than the run was begun to make; None where it would not.

    Args:
        plan: of the run.
        job: to go on with.
        model: the job's.
    """
    begun, given = json.loads(plan.header.config), job.model_dump(mode="json")
    same = {
        "source": (plan.header.source, job.source),
        "model": (plan.header.model.digest, model.digest),
        "policy": (plan.header.policy, job.policy.canonical),
    } | {field: (value_at(begun, field), value_at(given, field)) for field in SAME_FIELDS}
    for field, (then, now) in same.items():
        if then != now:
            return f"{field}: the open run {plan.run_id} was begun with {then}, this job has {now}"
    return None
