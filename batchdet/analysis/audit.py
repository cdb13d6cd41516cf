"""The coverage receipt: recounts what a run committed and compares it with the plan. Knows no detector.

One shard is held at a time, whatever the size of the run.
"""

from batchdet.analysis.detection_audit import Claims, read_claims
from batchdet.analysis.history import History, read_history
from batchdet.analysis.receipt import Findings, Receipt
from batchdet.analysis.shard_audit import check_shard, shard_name
from batchdet.errors import AuditError, NotFoundError, OutputError
from batchdet.records import RunRow
from batchdet.storage.filesystem import Store
from batchdet.storage.plan import RunPlan, plan_name, read_plan


def audit_run(output: Store, run_id: str | None = None) -> Receipt:
    """Recount a run from its committed files and compare it with its plan and its row.

    Args:
        output: the output folder.
        run_id: which run; None for the newest, open or not.

    Raises:
        OutputError: there is no such run, or its plan is damaged.
        AuditError: its plan is gone: nothing says what was listed.
        StorageError: a file cannot be read.
    """
    history = read_history(output)
    newest = history.run_ids[0]
    if run_id is not None and run_id not in history.run_ids:
        raise OutputError(f"--run {run_id}: {output.uri} has no such run; newest is {newest}")
    plan, claims = _read_plan(output, run_id or newest)
    row = next((row for row in history.closed if row.run_id == plan.run_id), None)
    findings = Findings()
    present = _check_files(output, plan, row, findings)
    for shard_id in sorted(present):
        check_shard(output, plan, shard_id, claims, findings)
    open_shards = tuple(shard_id for shard_id in range(plan.num_shards) if shard_id not in present)
    _check_closed(plan, row, open_shards, history, findings)
    _check_counts(plan, row, present, findings)
    checks = findings.checks()
    return Receipt(
        run_id=plan.run_id,
        passed=all(check.passed for check in checks),
        num_listed=plan.counts.num_listed,
        num_labelled=findings.num_labelled,
        num_empty=findings.num_empty,
        num_failed=findings.num_failed,
        num_unchanged=plan.counts.num_unchanged,
        num_detections=findings.num_detections,
        num_candidates=findings.num_candidates,
        open_shards=open_shards,
        checks=checks,
    )


def _check_files(output: Store, plan: RunPlan, row: RunRow | None, findings: Findings) -> set[int]:
    """Shards whose commit marker is there; complains of files too many or too few."""
    present: set[int] = set()
    wanted = {f"shard-{shard_id:05d}.parquet": shard_id for shard_id in range(plan.num_shards)}
    check = "shard files are the plan's"
    for table in ("images", "detections"):
        folder = f"{table}/run_id={plan.run_id}"
        names = {name.rsplit("/", 1)[-1] for name in output.list(folder)}
        found = {wanted[name] for name in names & wanted.keys()}
        for name in sorted(names - wanted.keys()):
            findings.complain(check, f"{output.child_uri(f'{folder}/{name}')} is not in the plan")
        if table == "images":
            present = found
        # an open run still lacks whole shards; its committed ones lack nothing
        owed = present if row is None or row.status != "complete" else set(wanted.values())
        for shard_id in sorted(owed - found):
            findings.complain(check, f"{output.child_uri(shard_name(table, plan.run_id, shard_id))} is missing")
    return present


def _read_plan(output: Store, run_id: str) -> tuple[RunPlan, Claims]:
    uri = output.child_uri(plan_name(run_id))
    try:
        plan = read_plan(output, run_id)
        return plan, read_claims(plan.header)
    except NotFoundError as error:
        raise AuditError(f"run {run_id}: {uri} is gone: nothing says any more what was to be labelled") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{uri} is damaged: {' '.join(str(error).split())}") from error


def _check_closed(
    plan: RunPlan, row: RunRow | None, open_shards: tuple[int, ...], history: History, findings: Findings
) -> None:
    check = "run is complete"
    done = f"{plan.num_shards - len(open_shards)} of {plan.num_shards} shards committed"
    if row is None:
        listed = ", ".join(map(str, open_shards[:10])) + (", …" if len(open_shards) > 10 else "")
        rest = f"; open: {listed}" if open_shards else "; `batchdet label` closes it"
        findings.complain(check, f"it is open with {done}{rest}")
    elif row.status != "complete":
        complete = [row.run_id for row in history.closed if row.status == "complete"]
        rest = f"the newest complete run is {complete[0]}" if complete else "no run is complete yet"
        stopped = row.run_id == history.run_ids[0]
        how = "it is stopped, and `batchdet label` goes on with it" if stopped else "it was given up"
        findings.complain(check, f"{how}: closed as {row.status} with {done}; {rest}")


def _check_counts(plan: RunPlan, row: RunRow | None, present: set[int], findings: Findings) -> None:
    # what is still to be labelled is owed by a run that does not say it is complete
    is_complete = row is not None and row.status == "complete"
    waiting = 0 if is_complete else plan.counts.num_planned - plan.images_to_label(present)
    accounted = findings.num_labelled + findings.num_failed + plan.counts.num_unchanged + waiting
    if accounted != plan.counts.num_listed:
        findings.complain(
            "listed = labelled + failed + unchanged",
            f"{plan.counts.num_listed} listed, but {findings.num_labelled} labelled + {findings.num_failed} failed "
            f"+ {plan.counts.num_unchanged} unchanged" + (f" + {waiting} to be labelled" if waiting else ""),
        )
    for name, want in _recount(plan, findings).items() if row is not None else ():
        if getattr(row, name) != want:
            findings.complain("runs row equals the recount", f"{name} is {getattr(row, name)}, recounted {want}")


def _recount(plan: RunPlan, findings: Findings) -> dict[str, int | str]:
    return {
        "num_listed": plan.counts.num_listed,
        "num_unchanged": plan.counts.num_unchanged,
        "num_deleted": findings.num_deleted,
        "num_labelled": findings.num_labelled,
        "num_empty": findings.num_empty,
        "num_failed": findings.num_failed,
        "num_detections": findings.num_detections,
        "model_digest": plan.header.model.digest,
        "policy_digest": plan.header.policy_digest,
    }
