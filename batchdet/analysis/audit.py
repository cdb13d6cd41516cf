"""The coverage receipt: recounts what a run committed and compares it with the plan. Knows no detector.

One shard is held at a time, whatever the size of the run.
"""

from batchdet.analysis.history import read_history
from batchdet.analysis.receipt import Findings, Receipt
from batchdet.analysis.shard_audit import check_shard, shard_name
from batchdet.errors import OutputError
from batchdet.records import RunRow
from batchdet.storage.filesystem import Store
from batchdet.storage.plan import RunPlan, read_plan


def audit_run(output: Store, run_id: str | None = None) -> Receipt:
    """Recount a run from its committed files and compare it with its plan and its row.

    Args:
        output: the output folder.
        run_id: which run; None for the newest, open or not.

    Raises:
        OutputError: there is no such run.
        StorageError: a file cannot be read.
    """
    history = read_history(output)
    newest = history.run_ids[0]
    if run_id is not None and run_id not in history.run_ids:
        raise OutputError(f"--run {run_id}: {output.uri} has no such run; newest is {newest}")
    plan = read_plan(output, run_id or newest)
    row = next((row for row in history.closed if row.run_id == plan.run_id), None)
    findings = Findings()
    present = _check_files(output, plan, row, findings)
    for shard_id in sorted(present):
        check_shard(output, plan, shard_id, findings)
    open_shards = tuple(shard_id for shard_id in range(plan.num_shards) if shard_id not in present)
    _check_run(plan, row, open_shards, findings)
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


def _check_run(plan: RunPlan, row: RunRow | None, open_shards: tuple[int, ...], findings: Findings) -> None:
    done = plan.num_shards - len(open_shards)
    if row is None:
        listed = ", ".join(map(str, open_shards[:10])) + (", …" if len(open_shards) > 10 else "")
        findings.complain(
            "run is complete",
            f"it is open with {done} of {plan.num_shards} shards committed"
            + (f"; open: {listed}" if open_shards else "; `batchdet label` closes it"),
        )
    elif row.status != "complete":
        findings.complain("run is complete", f"it is {row.status}, {done} of {plan.num_shards} shards committed")
    accounted = findings.num_labelled + findings.num_failed + plan.counts.num_unchanged
    if accounted != plan.counts.num_listed:
        findings.complain(
            "listed = labelled + failed + unchanged",
            f"{plan.counts.num_listed} listed, but {findings.num_labelled} labelled + {findings.num_failed} failed "
            f"+ {plan.counts.num_unchanged} unchanged",
        )
    for name, want in _recount(plan, findings).items() if row is not None else ():
        if getattr(row, name) != want:
            findings.complain("runs row equals the recount", f"{name} is {getattr(row, name)}, recounted {want}")


def _recount(plan: RunPlan, findings: Findings) -> dict[str, int | str]:
    return {
        "num_listed": plan.counts.num_listed,
        "num_unchanged": plan.counts.num_unchanged,
        "num_labelled": findings.num_labelled,
        "num_empty": findings.num_empty,
        "num_failed": findings.num_failed,
        "num_detections": findings.num_detections,
        "model_digest": plan.header.model.digest,
        "policy_digest": plan.header.policy_digest,
    }
