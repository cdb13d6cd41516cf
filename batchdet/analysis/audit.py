"""The coverage receipt: recounts what a run committed and compares it with the plan. Knows no detector.

One shard is held at a time, whatever the size of the run.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchdet.errors import AuditError, NotFoundError, OutputError
from batchdet.records import RunRow, Shard
from batchdet.storage.filesystem import Store, mapped_errors
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import RunPlan, read_plan, read_shard
from batchdet.storage.schema import DETECTIONS, IMAGES, check_schema_version

CHECKS = {
    "run is complete": "the run has its row in runs/ and the row says complete",
    "shard files are the plan's": "images/ and detections/ hold one file per planned shard and nothing else",
    "files carry the run's stamp": "schema version, run, model and policy in the metadata of every file",
    "columns are the schema's": "names and types of every file",
    "every image once": "each image of the plan has one row, and no other image has any",
    "statuses are sound": "labelled images have counts, failed ones a stage and a code",
    "detections belong to labelled images": "of the same shard",
    "counts are the detections'": "num_candidates and num_detections of each image equal its stored and accepted rows",
    "detections are in order": "detection_index counts from 0 while scores fall",
    "listed = labelled + failed + unchanged": "law 1, from the plan and the recounted files",
    "runs row equals the recount": "the numbers of the run's row",
}
"""Every check by name, with what it asserts."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the receipt.

    Attributes:
        finding: what was counted, or what is wrong, with a file and a sample image.
    """

    name: str
    passed: bool
    finding: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """The outcome of an audit: recounted, not read from the run's row."""

    run_id: str
    passed: bool
    num_listed: int
    num_labelled: int
    num_empty: int
    num_failed: int
    num_unchanged: int
    num_detections: int
    num_candidates: int
    open_shards: tuple[int, ...]
    checks: tuple[Check, ...]

    def require_passed(self) -> None:
        """Do nothing if every check passed.

        Raises:
            AuditError: one did not; names the first, with its finding.
        """
        wrong = [check for check in self.checks if not check.passed]
        if wrong:
            more = f" ({len(wrong) - 1} more checks failed)" if len(wrong) > 1 else ""
            raise AuditError(f"run {self.run_id}: {wrong[0].name}: {wrong[0].finding}{more}")


@dataclass
class _Findings:
    """Counts and complaints while shards go by; of each check the first complaint and their number are kept."""

    first: dict[str, str] = field(default_factory=dict)
    number: dict[str, int] = field(default_factory=dict)
    num_labelled: int = 0
    num_empty: int = 0
    num_failed: int = 0
    num_detections: int = 0
    num_candidates: int = 0

    def complain(self, check: str, finding: str) -> None:
        self.first.setdefault(check, finding)
        self.number[check] = self.number.get(check, 0) + 1

    def checks(self) -> tuple[Check, ...]:
        return tuple(Check(name, name not in self.first, self._finding(name)) for name in CHECKS)

    def _finding(self, name: str) -> str:
        if name not in self.first:
            return CHECKS[name]
        more = self.number[name] - 1
        return self.first[name] + (f" (and {more} more)" if more else "")


def audit_run(output: Store, run_id: str | None = None) -> Receipt:
    """Recount a run from its committed files and compare it with its plan and its row.

    Args:
        output: the output folder.
        run_id: which run; None for the newest, open or not.

    Raises:
        OutputError: there is no such run.
        StorageError: a file cannot be read.
    """
    ledger = Ledger(output)
    plan = _find_plan(output, ledger, run_id)
    rows = {row.run_id: row for row in ledger.run_rows()}
    findings = _Findings()
    present = _check_files(output, plan, findings)
    for shard_id in sorted(present):
        _check_shard(output, plan, shard_id, findings)
    open_shards = tuple(shard_id for shard_id in range(plan.num_shards) if shard_id not in present)
    _check_run(plan, rows.get(plan.run_id), open_shards, findings)
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


def _find_plan(output: Store, ledger: Ledger, run_id: str | None) -> RunPlan:
    known = [row.run_id for row in ledger.run_rows()] + [plan.run_id for plan in ledger.open_runs()]
    if not known:
        raise OutputError(f"{output.uri}: no runs here; is this the --output of a `batchdet label`?")
    if run_id is not None and run_id not in known:
        raise OutputError(f"--run {run_id}: {output.uri} has no such run; newest is {max(known)}")
    return read_plan(output, run_id or max(known))


def _check_files(output: Store, plan: RunPlan, findings: _Findings) -> set[int]:
    """Shards whose commit marker is there; complains of files too many or too few."""
    present: set[int] = set()
    wanted = {f"shard-{shard_id:05d}.parquet": shard_id for shard_id in range(plan.num_shards)}
    check = "shard files are the plan's"
    for table in ("images", "detections"):
        folder = f"{table}/run_id={plan.run_id}"
        names = {name.rsplit("/", 1)[-1] for name in output.list(folder)}
        for name in sorted(names - wanted.keys()):
            findings.complain(check, f"{output.child_uri(f'{folder}/{name}')} is not in the plan")
        if table == "images":
            present = {wanted[name] for name in names & wanted.keys()}
        else:
            for shard_id in sorted(present - {wanted[name] for name in names & wanted.keys()}):
                findings.complain(check, f"{output.child_uri(_name(table, plan, shard_id))} is missing")
    return present


def _check_shard(output: Store, plan: RunPlan, shard_id: int, findings: _Findings) -> None:
    images = _read(output, plan, "images", shard_id, findings)
    detections = _read(output, plan, "detections", shard_id, findings)
    if images is None:
        return
    where = output.child_uri(_name("images", plan, shard_id))
    _check_coverage(read_shard(output, plan, shard_id), images, where, findings)
    _check_statuses(images, where, findings)
    _count(images, findings)
    if detections is not None:
        findings.num_candidates += len(detections)
        findings.num_detections += _true(detections["accepted"])
        _check_detections(images, detections, output.child_uri(_name("detections", plan, shard_id)), findings)


def _read(output: Store, plan: RunPlan, table: str, shard_id: int, findings: _Findings) -> pa.Table | None:
    """The file if its columns can be relied on; complains of its stamp."""
    name = _name(table, plan, shard_id)
    uri = output.child_uri(name)
    try:
        with mapped_errors(uri):
            read = pq.read_table(pa.BufferReader(output.read_bytes(name)))
    except NotFoundError:
        return None
    except pa.ArrowException as error:
        findings.complain("columns are the schema's", f"{uri} is not Parquet: {error}")
        return None
    metadata = read.schema.metadata or {}
    check_schema_version(metadata, uri)
    for key, want in plan.header.stamp.metadata().items():
        if metadata.get(key) != want:
            found = metadata.get(key, b"nothing").decode(errors="replace")
            findings.complain("files carry the run's stamp", f"{uri}: {key.decode()} is {found}, not {want.decode()}")
    schema = IMAGES if table == "images" else DETECTIONS
    if not read.schema.equals(schema):
        findings.complain("columns are the schema's", f"{uri}: {_difference(read.schema, schema)}")
        return None
    return read


def _check_coverage(shard: Shard, images: pa.Table, where: str, findings: _Findings) -> None:
    check = "every image once"
    planned = {ref.uri for ref in shard.images}
    seen: set[str] = set()
    for uri in images["image_uri"].to_pylist():
        if uri in seen:
            findings.complain(check, f"{where}: {uri} has two rows")
        elif uri not in planned:
            findings.complain(check, f"{where}: {uri} is not in this shard of the plan")
        seen.add(uri)
    for uri in sorted(planned - seen):
        findings.complain(check, f"{where}: {uri} has no row")
    if _true(pc.not_equal(images["shard_id"], shard.shard_id)):
        findings.complain(check, f"{where}: rows of another shard_id")


def _check_statuses(images: pa.Table, where: str, findings: _Findings) -> None:
    status = images["status"]
    labelled, failed = pc.equal(status, "labelled"), pc.equal(status, "failed")
    counted = pc.and_(pc.is_valid(images["num_detections"]), pc.is_valid(images["num_candidates"]))
    explained = pc.and_(pc.is_valid(images["failure_stage"]), pc.is_valid(images["failure_code"]))
    sound = pc.or_(pc.and_(labelled, counted), pc.and_(failed, explained))
    for uri, state in _samples(images, pc.invert(pc.fill_null(sound, False)), "status"):
        findings.complain("statuses are sound", f"{where}: {uri} is {state!r} without what that needs")


def _count(images: pa.Table, findings: _Findings) -> None:
    findings.num_labelled += _true(pc.equal(images["status"], "labelled"))
    findings.num_failed += _true(pc.equal(images["status"], "failed"))
    findings.num_empty += _true(pc.and_(pc.equal(images["status"], "labelled"), pc.equal(images["num_detections"], 0)))


def _check_detections(images: pa.Table, detections: pa.Table, where: str, findings: _Findings) -> None:
    labelled = images.filter(pc.equal(images["status"], "labelled"))
    foreign = pc.invert(pc.is_in(detections["image_uri"], value_set=labelled["image_uri"].combine_chunks()))
    for uri, _ in _samples(detections, foreign, "shard_id"):
        findings.complain("detections belong to labelled images", f"{where}: {uri} is no labelled image of the shard")
    numbered = pa.table({"image_uri": detections["image_uri"], "accepted": pc.cast(detections["accepted"], pa.int64())})
    stored = numbered.group_by("image_uri").aggregate([("accepted", "count"), ("accepted", "sum")])
    joined = labelled.select(["image_uri", "num_candidates", "num_detections"]).join(stored, "image_uri")
    same = pc.and_(
        pc.equal(joined["num_candidates"], pc.fill_null(joined["accepted_count"], 0)),
        pc.equal(joined["num_detections"], pc.fill_null(joined["accepted_sum"], 0)),
    )
    for uri, stated in _samples(joined, pc.invert(same), "num_candidates"):
        findings.complain("counts are the detections'", f"{where}: {uri} states {stated} candidates, or accepted ones, "
                          "that are not those stored")  # fmt: skip
    _check_order(detections, where, findings)


def _check_order(detections: pa.Table, where: str, findings: _Findings) -> None:
    """Rows of an image lie together, numbered from 0, scores not rising."""
    if not len(detections):
        return
    uris = detections["image_uri"].combine_chunks().dictionary_encode()
    owner = uris.indices.to_numpy()
    index = detections["detection_index"].to_numpy()
    scores = detections["score"].to_numpy()
    starts = np.concatenate([[True], owner[1:] != owner[:-1]])
    place = np.arange(len(owner)) - np.maximum.accumulate(np.where(starts, np.arange(len(owner)), 0))
    rising = np.concatenate([[False], (scores[1:] > scores[:-1]) & ~starts[1:]])
    wrong = (index != place) | rising
    if starts.sum() != len(uris.dictionary):
        findings.complain("detections are in order", f"{where}: rows of one image lie apart")
    for position in np.flatnonzero(wrong)[:1]:
        uri = uris.dictionary[int(owner[position])].as_py()
        findings.complain("detections are in order", f"{where}: {uri} at detection_index {index[position]}")


def _check_run(plan: RunPlan, row: RunRow | None, open_shards: tuple[int, ...], findings: _Findings) -> None:
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
    elif open_shards:
        findings.complain("shard files are the plan's", f"{len(open_shards)} shards are missing, first {open_shards[0]}")
    accounted = findings.num_labelled + findings.num_failed + plan.counts.num_unchanged
    if accounted != plan.counts.num_listed:
        findings.complain(
            "listed = labelled + failed + unchanged",
            f"{plan.counts.num_listed} != {findings.num_labelled} + {findings.num_failed} + {plan.counts.num_unchanged}",
        )
    for name, want in _recount(plan, findings).items() if row is not None else ():
        if getattr(row, name) != want:
            findings.complain("runs row equals the recount", f"{name} is {getattr(row, name)}, recounted {want}")


def _recount(plan: RunPlan, findings: _Findings) -> dict[str, Any]:
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


def _samples(table: pa.Table, mask: Any, column: str) -> Iterator[tuple[str, Any]]:
    wrong = table.filter(mask)
    yield from zip(wrong["image_uri"].to_pylist(), wrong[column].to_pylist(), strict=True)


def _difference(found: pa.Schema, want: pa.Schema) -> str:
    for wanted in want:
        if wanted.name not in found.names:
            return f"no column {wanted.name}"
        if found.field(wanted.name).type != wanted.type:
            return f"{wanted.name} is {found.field(wanted.name).type}, not {wanted.type}"
    return f"columns {', '.join(found.names)} are not {', '.join(want.names)}"


def _true(mask: Any) -> int:
    return pc.sum(mask).as_py() or 0


def _name(table: str, plan: RunPlan, shard_id: int) -> str:
    return f"{table}/run_id={plan.run_id}/shard-{shard_id:05d}.parquet"
