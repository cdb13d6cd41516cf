"""The story of a night: label, audit, compare, and when it is due retrain, promote and label again. Knows no Ray.

Each step leaves its outcome in the journal; the same command on the same night goes on with the first that is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from batchdet.analysis.alarms import require_quiet
from batchdet.analysis.audit import audit_run
from batchdet.analysis.changes import write_changes
from batchdet.analysis.receipt import Receipt
from batchdet.config import JobConfig, PolicyConfig
from batchdet.earlier import other_job
from batchdet.errors import BatchdetError, GateError, OutputError, OutputHeldError, StorageError
from batchdet.nightly.account import images_accepted, message, sum_up
from batchdet.nightly.job import NightlyConfig, RetrainWhen
from batchdet.nightly.journal import SUMMARY, Document, Journal
from batchdet.notify import Message, tell, webhook_url
from batchdet.progress import Progress
from batchdet.records import RunRow
from batchdet.refiltering import refilter
from batchdet.retraining import Retrained
from batchdet.run import Manner, Runner, describe_model, label_bucket
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.lease import Terms, held
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import derivation_of, read_plan
from batchdet.training.job import RetrainConfig

CHANGES = "changes"
"""Folder of a night's change tables, below the night's."""

_UNTOLD = ("config", "policy", "versions", "categories", "started_at")
_IS_COMPLETE = "run is complete"
_NO_TIME_HOURS = 1e-6


@dataclass(frozen=True, slots=True)
class Places:
    """Where work is done.

    Attributes:
        runner: labels.
        retrain: trains a student, measures and releases it.
    """

    runner: Runner
    retrain: Callable[[RetrainConfig], Retrained]


def run_night(
    config: NightlyConfig,
    night: str,
    places: Places,
    progress: Progress,
    *,
    steal_lease: bool = False,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Document:
    """Do what is left of a night, and tell how it went.

    Args:
        config: the night's job.
        night: its name, see `Journal`.
        places: where work is done.
        progress: told what happens.
        steal_lease: take the output from whoever holds it.
        clock: the time, UTC.

    Returns:
        The summary, as it was written to the output; its `exit_code` is 0 where all is well.

    Raises:
        UserError: the job or the output is unusable before the night began.
        OutputHeldError: another run holds the output.
    """
    job = config.job
    if config.notify is not None:
        webhook_url(config.notify)
    try:
        output = open_store(job.output, job.storage.output)
        journal = Journal(output, night)
        done = journal.read(SUMMARY)
    except StorageError as error:
        raise OutputError(f"output {error}") from error
    if done is not None and done["exit_code"] == 0:
        progress.log(f"night {night} is done")
        return done
    told: Message | None = Message(f"night {night} of {output.uri} broke off", (), "{}")
    try:
        with held(output, "nightly", Terms(job.limits.lease_seconds, steal_lease), progress.log):
            summary = _Night(config, journal, output, places, progress, clock).spend()
        told = message(summary)
    except OutputHeldError:
        told = None  # its holder tells of the night
        raise
    finally:
        _tell(config, told, progress)
    return summary


def _tell(config: NightlyConfig, told: Message | None, progress: Progress) -> None:
    if config.notify is not None and told is not None:
        trouble = tell(config.notify, told)
        if trouble is not None:
            progress.log(trouble)


@dataclass(frozen=True, slots=True)
class _Night:
    config: NightlyConfig
    journal: Journal
    output: Store
    places: Places
    progress: Progress
    clock: Callable[[], datetime]

    def spend(self) -> Document:
        """Do the steps that are missing, and write the summary; errors of the night are in it."""
        steps: Document = {}
        error: BatchdetError | None = None
        try:
            for name, do in self._steps(steps):
                steps[name] = self.journal.once(name, do)
                if name == "changes":
                    require_quiet({"alarms": steps[name].get("alarms")})
            _require_promoted(steps)
        except OutputHeldError:
            raise
        except BatchdetError as caught:
            error = caught
        earlier = next(self.journal.earlier(), None)
        summary = sum_up(self.journal.night, self.output.uri, steps, error, earlier, self.clock())
        self.journal.keep(SUMMARY, summary)
        return self.journal.read(SUMMARY) or summary

    def _steps(self, steps: Document) -> Sequence[tuple[str, Callable[[], Document]]]:
        """Every step by name, in order; each is given what those before it left."""
        return (
            ("begun", self._begin),
            ("finish", lambda: self._finish(steps["begun"])),
            ("refilter", lambda: self._refilter(steps["finish"])),
            ("label", lambda: self._label_tonight(steps)),
            ("audit", lambda: self._audit(steps["label"], steps["begun"]["last_run_id"], steps["finish"])),
            ("changes", lambda: self._compare(steps)),
            ("retrain", lambda: self._retrain(steps)),
            ("relabel", lambda: self._relabel(steps)),
            ("relabel_audit", lambda: self._audit(steps["relabel"], steps["label"]["run_id"])),
        )

    def _begin(self) -> Document:
        ledger = Ledger(self.output)
        complete, used = ledger.complete_runs(), ledger.run_ids()
        return {
            "started_at": self.clock().isoformat(),
            "run_before": complete[0].run_id if complete else None,
            "last_run_id": used[-1] if used else None,
        }

    def _finish(self, begun: Mapping[str, Any]) -> Document:
        """Go on with a run that was begun under an earlier policy, under that one: what it labelled is kept."""
        ledger, job = Ledger(self.output), self.config.job
        going = [plan for plan in (*ledger.open_runs()[:1], ledger.stopped_run()) if plan and not plan.header.derived]
        if not going or going[0].header.policy_digest == job.policy.digest:
            return {"skipped": "no run of another policy goes on"}
        policy = PolicyConfig.model_validate_json(going[0].header.policy)
        then = self._job_in_time(begun).model_copy(update={"policy": policy})
        difference = other_job(going[0], then, describe_model(job))
        if difference is not None:
            return {"skipped": f"it is given up: {difference}"}
        row = self._label_once(then)
        return self._labelled([row])

    def _refilter(self, finished: Mapping[str, Any]) -> Document:
        """A policy that changed judges what is stored, before anything is labelled by it."""
        if finished.get("status") == "partial":
            return {"skipped": "labelling goes on in the next night"}
        ledger = Ledger(self.output)
        rows, job = ledger.complete_runs(), self.config.job
        begun = [plan for plan in ledger.open_runs() if (plan.header.derived or {}).get("by") == "refilter"]
        if not begun and not _is_judged_otherwise(rows, job.policy.digest):
            return {"skipped": "all is judged by this policy"}
        if ledger.stopped_run() is not None:
            return {"skipped": "a run that was stopped is given up first"}
        if rows[0].model_digest != describe_model(job).digest:
            return {"skipped": "the model is another: all is labelled again"}
        for plan in ledger.open_runs():
            if plan.header.derived is not None:
                continue  # refilter goes on with it, or gives it up
            self.progress.log(f"run {plan.run_id} is of another model: closing it as partial")
            ledger.close(ledger.closing_row(plan, "partial", 0.0))
        return _row(refilter(self.output, job.policy, self.progress.log))

    def _label_tonight(self, steps: Mapping[str, Any]) -> Document:
        if steps["finish"].get("status") == "partial":
            return dict(steps["finish"])
        return self._label(steps["begun"], steps["begun"]["last_run_id"])

    def _label(self, begun: Mapping[str, Any], last_run_id: str | None) -> Document:
        """Go on with a run of an earlier night, then label what is new tonight, as far as there is time."""
        runs: list[RunRow] = []
        while not runs or (runs[-1].status == "complete" and not _is_after(runs[-1].run_id, last_run_id)):
            runs.append(self._label_once(self._job_in_time(begun)))
        return self._labelled(runs)

    def _label_once(self, job: JobConfig) -> RunRow:
        return label_bucket(job, self.places.runner, self.progress, Manner("resume_own"))

    def _labelled(self, runs: Sequence[RunRow]) -> Document:
        counts = read_plan(self.output, runs[-1].run_id).counts
        return {
            **_row(runs[-1]),
            "classes": asdict(counts),
            "images_accepted": sum(run.num_labelled - run.num_empty for run in runs if run.status == "complete"),
            "runs": [run.run_id for run in runs],
        }

    def _job_in_time(self, begun: Mapping[str, Any]) -> JobConfig:
        """The job with what is left of the night's hours."""
        job = self.config.job
        if job.limits.max_hours is None:
            return job
        spent = self.clock() - datetime.fromisoformat(begun["started_at"])
        left = max(job.limits.max_hours - spent / timedelta(hours=1), _NO_TIME_HOURS)
        return job.model_copy(update={"limits": job.limits.model_copy(update={"max_hours": left})})

    def _audit(
        self, labelled: Mapping[str, Any], last_run_id: str | None, finished: Mapping[str, Any] = MappingProxyType({})
    ) -> Document:
        """Recount the runs of the steps, and complete ones after `last_run_id` that a night which died made."""
        if "skipped" in labelled:
            return {"skipped": labelled["skipped"]}
        complete = [row.run_id for row in Ledger(self.output).complete_runs()]
        since = {run_id for run_id in complete if _is_after(run_id, last_run_id)}
        for run_id in sorted(since.union(labelled["runs"], finished.get("runs", ())) - {labelled["run_id"]}):
            audit_run(self.output, run_id).require_passed()
        receipt = audit_run(self.output, labelled["run_id"])
        wrong = [check for check in receipt.checks if not check.passed]
        if labelled["status"] == "complete" or any(check.name != _IS_COMPLETE for check in wrong):
            receipt.require_passed()
        return _receipt(receipt)

    def _compare(self, steps: Mapping[str, Any]) -> Document:
        """What readers see now against what they saw after the last night that was compared."""
        complete = [row.run_id for row in Ledger(self.output).complete_runs()]
        if steps["label"]["status"] != "complete" or not complete:
            return {"skipped": "labelling goes on in the next night"}
        before = self._compared_last()
        if before not in complete:
            # the first night, or a compaction took it out since
            before = steps["begun"]["run_before"]
        if before == complete[0]:
            return {"skipped": f"no run since {before}"}
        if before is not None and before not in complete:
            return {"skipped": f"run {before} is no longer there"}
        folder = open_store(self.output.child_uri(f"{self.journal.folder}/{CHANGES}"), self.output.options)
        return write_changes(self.output, before, complete[0], self.config.diff, folder)

    def _compared_last(self) -> str | None:
        for summary in self.journal.earlier():
            run_after = summary["steps"].get("changes", {}).get("run_after")
            if run_after is not None:
                return str(run_after["run_id"] if isinstance(run_after, dict) else run_after)
        return None

    def _retrain(self, steps: Mapping[str, Any]) -> Document:
        when = self.config.retrain
        if when is None:
            return {"skipped": "not asked for"}
        if steps["label"]["status"] != "complete":
            return {"skipped": "labelling goes on in the next night"}
        why = self._due(when, steps)
        if why is None:
            return {"skipped": "not due"}
        self.progress.log(f"retraining: {why}")
        train = when.train.model_copy(update={"output": f"{when.train.output.rstrip('/')}/{self.journal.night}"})
        made = self.places.retrain(train)
        release = made.release
        measures = {"teacher": made.teacher, "student": release.candidate}
        return {
            "why": why,
            "reference": release.reference,
            "promoted": release.promoted,
            "reasons": list(release.reasons),
            "num_steps": made.num_steps,
            **{
                f"{name}_map": None if found is None else found.evaluation.score.map for name, found in measures.items()
            },
        }

    def _due(self, when: RetrainWhen, steps: Mapping[str, Any]) -> str | None:
        """Why a student is to be trained tonight; None where it is not."""
        earlier = next(self.journal.earlier(), None)
        if earlier is None:
            return None
        since = earlier["since_retraining"]
        days = (datetime.fromisoformat(steps["begun"]["started_at"]) - datetime.fromisoformat(since["time"])).days
        accepted = since["images_accepted"] + images_accepted(steps)
        if when.every_days is not None and days >= when.every_days:
            return f"{days} days since the last"
        if when.after_accepted is not None and accepted >= when.after_accepted:
            return f"{accepted:,} images with accepted detections since the last"
        return None

    def _relabel(self, steps: Mapping[str, Any]) -> Document:
        when = self.config.retrain
        if when is None or not when.relabel or not steps["retrain"].get("promoted"):
            return {"skipped": "no model was promoted"}
        return self._label(steps["begun"], steps["label"]["run_id"])


def _is_judged_otherwise(rows: Sequence[RunRow], policy_digest: str) -> bool:
    """Whether a run since the last refilter by this policy, that one's sources left out, has another policy."""
    for row in rows:
        if row.policy_digest != policy_digest:
            return True
        if (derivation_of(row.config) or {}).get("by") == "refilter":
            return False
    return False


def _require_promoted(steps: Mapping[str, Any]) -> None:
    made = steps["retrain"]
    if made.get("promoted") is False:
        raise GateError(f"{made['reference']} is not promoted: {'; '.join(made['reasons'])}")


def _is_after(run_id: str, last_run_id: str | None) -> bool:
    return last_run_id is None or run_id > last_run_id


def _row(row: RunRow) -> Document:
    return {name: value for name, value in asdict(row).items() if name not in _UNTOLD}


def _receipt(receipt: Receipt) -> Document:
    wrong = {check.name: check.finding for check in receipt.checks if not check.passed}
    return {"run_id": receipt.run_id, "passed": receipt.passed, "wrong": wrong}
