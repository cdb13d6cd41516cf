"""The story of a night: label, audit, compare, and when it is due retrain, promote and label again. Knows no Ray.

Each step leaves its outcome in the journal; the same command on the same night goes on with the first that is missing.
"""

import json
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
from batchdet.nightly.account import ending, images_accepted, message, out_of_time, sum_up
from batchdet.nightly.job import NightlyConfig, RetrainWhen
from batchdet.nightly.journal import SUMMARY, Document, Journal
from batchdet.notify import Message, tell, webhook_url
from batchdet.progress import Progress
from batchdet.records import RunRow
from batchdet.refiltering import refilter
from batchdet.retraining import Retrained
from batchdet.run import Manner, Runner, describe_model, label_bucket
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.foreign import without_secrets
from batchdet.storage.lease import Terms, held
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import RunPlan, derivation_of, read_plan
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
        _tell(config, _broke_off(night, without_secrets(job.output), f"output {error}"), progress)
        raise OutputError(f"output {error}") from error
    if done is not None and _is_over(done, journal, progress):
        return done
    told: Message | None = _broke_off(night, output.uri)
    try:
        _require_writable(output)
        with held(output, "nightly", Terms(job.limits.lease_seconds, steal_lease), progress.log):
            done = journal.read(SUMMARY)  # it may have been ended while this process began
            if done is not None and _is_over(done, journal, progress):
                told = None
                return done
            summary = _Night(config, journal, output, places, progress, clock).spend()
        told = message(summary)
    except OutputHeldError:
        told = None  # its holder tells of the night
        raise
    except BatchdetError as error:
        told = _broke_off(night, output.uri, str(error))
        raise
    finally:
        _tell(config, told, progress)
    if summary["exit_code"] == 0:
        progress.log(f"night {night} {ending(summary)}")
    return summary


def _require_writable(output: Store) -> None:
    try:
        output.probe_writable()
    except StorageError as error:
        raise OutputError(f"output {error}; name a folder that can be written") from error


def _is_over(done: Document, journal: Journal, progress: Progress) -> bool:
    """Whether nothing of a night is left to do, and a line that says so."""
    if done["exit_code"]:
        return False
    later = journal.later()
    if out_of_time(done["steps"]) is None:
        progress.log(f"night {journal.night} is done; --night names another")
    elif later is not None:
        progress.log(f"night {journal.night} was out of hours, and is left to night {later}, which was begun since")
    return out_of_time(done["steps"]) is None or later is not None


def _broke_off(night: str, output: str, error: str | None = None) -> Message:
    """What is told where no summary could be written."""
    title = f"night {night} of {output} broke off"
    document = {"night": night, "output": output, "exit_code": 1, "error": error or "broke off"}
    return Message(title, () if error is None else (error,), json.dumps(document, ensure_ascii=False))


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
            self._go_on([name for name, _ in self._steps(steps)])
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

    def _go_on(self, names: Sequence[str]) -> None:
        """Of a night begun before: have again what its hours ended, and hours for that where they are over."""
        begun = self.journal.read(names[0])
        if begun is None:
            return
        left = self._hours_left(begun)
        if left is not None and left <= 0:
            self.progress.log(
                f"night {self.journal.night} is begun again after its hours: limits.max_hours begins anew"
            )
            self.journal.keep(names[0], {**begun, "hours_since": self.clock().isoformat()})
        done = {name: known for name in names if (known := self.journal.read(name)) is not None}
        ended = out_of_time(done)
        if ended is not None:
            self.journal.forget(names[names.index(ended) :])

    def _steps(self, steps: Document) -> Sequence[tuple[str, Callable[[], Document]]]:
        """Every step by name, in order; each is given what those before it left."""
        return (
            ("begun", self._begin),
            ("finish", lambda: self._finish(steps["begun"])),
            ("refilter", lambda: self._refilter(steps["begun"], steps["finish"])),
            ("label", lambda: self._label_tonight(steps)),
            ("audit", lambda: self._audit(steps["label"], steps["begun"]["last_run_id"], steps["begun"])),
            ("changes", lambda: self._compare(steps)),
            ("retrain", lambda: self._retrain(steps)),
            ("relabel", lambda: self._relabel(steps)),
            ("relabel_audit", lambda: self._audit(steps["relabel"], steps["label"]["run_id"])),
        )

    def _begin(self) -> Document:
        ledger, now = Ledger(self.output), self.clock().isoformat()
        complete, used = ledger.complete_runs(), ledger.run_ids()
        return {
            "started_at": now,
            "hours_since": now,
            "run_before": complete[0].run_id if complete else None,
            "last_run_id": used[-1] if used else None,
            "going": [plan.run_id for plan in _going(ledger)],
        }

    def _finish(self, begun: Mapping[str, Any]) -> Document:
        """Go on with a run that was begun under an earlier policy, under that one: what it labelled is kept."""
        ledger, job = Ledger(self.output), self.config.job
        going = _going(ledger)
        if not going or going[0].header.policy_digest == job.policy.digest:
            return {"skipped": "no run of another policy goes on"}
        policy = PolicyConfig.model_validate_json(going[0].header.policy)
        then = self._job_in_time(begun).model_copy(update={"policy": policy})
        difference = other_job(going[0], then, describe_model(job))
        if difference is not None:
            return {"skipped": f"it is given up: {difference}"}
        return self._labelled([self._label_once(then)], begun)

    def _refilter(self, night_begun: Mapping[str, Any], finished: Mapping[str, Any]) -> Document:
        """A policy that changed judges what is stored, before anything is labelled by it."""
        if finished.get("status") == "partial":
            return {"skipped": "labelling goes on in the next night"}
        ledger = Ledger(self.output)
        rows, job = ledger.complete_runs(), self.config.job
        begun = [plan for plan in ledger.open_runs() if (plan.header.derived or {}).get("by") == "refilter"]
        if not begun and not _is_judged_otherwise(rows, job.policy.digest):
            done = next((row for row in rows if _is_refiltered(row)), None)
            if done is not None and _is_after(done.run_id, night_begun["last_run_id"]):
                return _row(done)  # by a process of this night that died before it could say so
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
        runs = self._labelled_since(last_run_id)
        while not runs or (runs[-1].status == "complete" and not _is_after(runs[-1].run_id, last_run_id)):
            runs.append(self._label_once(self._job_in_time(begun)))
        return self._labelled(runs, begun)

    def _labelled_since(self, last_run_id: str | None) -> list[RunRow]:
        """The run that a process ended which died before it could say so."""
        return [
            row
            for row in Ledger(self.output).complete_runs()
            if _is_after(row.run_id, last_run_id)
            and row.policy_digest == self.config.job.policy.digest
            and derivation_of(row.config) is None
        ][:1]

    def _label_once(self, job: JobConfig) -> RunRow:
        return label_bucket(job, self.places.runner, self.progress, Manner("resume_own"))

    def _labelled(self, runs: Sequence[RunRow], begun: Mapping[str, Any]) -> Document:
        """The last of these runs, and what of all that the night ended, those of a process that died among them."""
        ended = self._ended_since(begun["last_run_id"], begun)
        return {
            **_row(runs[-1]),
            "classes": asdict(read_plan(self.output, runs[-1].run_id).counts),
            "images_accepted": sum(run.num_labelled - run.num_empty for run in ended if not derivation_of(run.config)),
            "runs": [run.run_id for run in runs],
        }

    def _ended_since(self, last_run_id: str | None, begun: Mapping[str, Any]) -> list[RunRow]:
        """Complete runs after `last_run_id`, and those that were under way when the night began."""
        going = begun.get("going", ())
        return [
            row
            for row in Ledger(self.output).complete_runs()
            if _is_after(row.run_id, last_run_id) or row.run_id in going
        ]

    def _job_in_time(self, begun: Mapping[str, Any]) -> JobConfig:
        """The job with what is left of the night's hours."""
        job = self.config.job
        left = self._hours_left(begun)
        if left is None:
            return job
        return job.model_copy(update={"limits": job.limits.model_copy(update={"max_hours": max(left, _NO_TIME_HOURS)})})

    def _hours_left(self, begun: Mapping[str, Any]) -> float | None:
        """Of the night's hours, under none once they are over; None where they have no end."""
        if self.config.job.limits.max_hours is None:
            return None
        spent = self.clock() - datetime.fromisoformat(begun.get("hours_since", begun["started_at"]))
        return self.config.job.limits.max_hours - spent / timedelta(hours=1)

    def _audit(
        self, labelled: Mapping[str, Any], last_run_id: str | None, begun: Mapping[str, Any] = MappingProxyType({})
    ) -> Document:
        """Recount the runs of the step, and all that were ended since, also by a process that died."""
        if "skipped" in labelled:
            return {"skipped": labelled["skipped"]}
        since = {row.run_id for row in self._ended_since(last_run_id, begun)}
        for run_id in sorted(since.union(labelled["runs"]) - {labelled["run_id"]}):
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
        passed = datetime.fromisoformat(steps["begun"]["started_at"]) - datetime.fromisoformat(since["time"])
        # Nights do not begin on the second: a week of them may lack one.
        days = round(passed / timedelta(days=1))
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


def _going(ledger: Ledger) -> list[RunPlan]:
    """Runs that label and go on: the newest open one, and one that its time ended."""
    return [plan for plan in (*ledger.open_runs()[:1], ledger.stopped_run()) if plan and not plan.header.derived]


def _is_judged_otherwise(rows: Sequence[RunRow], policy_digest: str) -> bool:
    """Whether a run since the last refilter by this policy, that one's sources left out, has another policy."""
    for row in rows:
        if row.policy_digest != policy_digest:
            return True
        if _is_refiltered(row):
            return False
    return False


def _is_refiltered(row: RunRow) -> bool:
    return (derivation_of(row.config) or {}).get("by") == "refilter"


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
