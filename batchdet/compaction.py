"""History rewritten into few large files, and old runs removed. Knows no rows and no command.

`current`: for each model, its settings and policy one new run that holds the latest rows of its images. The same row
in a later run changes no answer, whichever of the new runs are there. `all`: a run of many files gets a twin, whose
run_id names the same second and comes right after, so that the order of runs stays.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from batchdet.records import PlanCounts, RunRow
from batchdet.rewriting import (
    FILE_BYTES,
    Derivation,
    Group,
    Say,
    derive,
    derived_header,
    give_up_begun,
    groups_of,
    images_per_file,
    num_shards,
    require_complete,
    require_none_open,
)
from batchdet.storage.filesystem import Store
from batchdet.storage.gathering import Rows
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import derivation_of, read_plan
from batchdet.storage.removal import Removal, retire, sweep
from batchdet.storage.selection import Selection, select_latest

History = Literal["current", "all"]


@dataclass(frozen=True, slots=True)
class Compaction:
    """What was done.

    Attributes:
        runs: new runs, oldest first.
        superseded: runs that hold nothing that the views need beside the others, oldest first.
    """

    runs: tuple[RunRow, ...]
    superseded: tuple[str, ...]


def compact(output: Store, history: History, say: Say, file_bytes: int = FILE_BYTES) -> Compaction:
    """Rewrite committed rows into few large files; no file that is there is touched.

    Args:
        output: the output folder.
        history: the latest rows of images that are not deleted, or every row of every complete run.
        say: told what happens.
        file_bytes: aimed at for a file.

    Raises:
        OutputError: no complete run, an open or a stopped one, or a damaged file.
        StorageError: the output cannot be read or written; the same command goes on.
    """
    ledger = Ledger(output)
    require_none_open(ledger)
    rows = require_complete(ledger)[::-1]
    make = _compact_current if history == "current" else _compact_all
    found = make(ledger, rows, file_bytes, say)
    give_up_begun(ledger, say)
    return found


def remove(output: Store, superseded: Sequence[str], grace: timedelta) -> Removal:
    """Take superseded runs out of sight, and delete the files of those that have been so for the grace.

    Raises:
        StorageError: the output cannot be written; the same command goes on.
    """
    now = datetime.now(UTC)
    retire(output, superseded, now)
    return sweep(output, now, grace)


def _compact_current(ledger: Ledger, rows: Sequence[RunRow], file_bytes: int, say: Say) -> Compaction:
    made = []
    with select_latest(ledger, [row.run_id for row in rows]) as selection:
        holders = {run_id for run_id, share in selection.shares.items() if share.num_images}
        current = [row for row in rows if row.run_id in holders]
        for group in groups_of(ledger, current, by_policy=True):
            derivation = _current_of(ledger, selection, group, file_bytes)
            if len(group.rows) == 1 and selection.shares[group.run_ids[0]].num_files <= num_shards(
                selection, derivation
            ):
                continue  # its rows lie in few files already
            made.append(derive(ledger, selection, derivation, _as_they_are, say))
            holders = holders - set(group.run_ids) | {made[-1].run_id}
    return Compaction(tuple(made), _superseded(ledger, rows, holders))


def _current_of(ledger: Ledger, selection: Selection, group: Group, file_bytes: int) -> Derivation:
    per_shard = images_per_file(ledger.output, group.rows, file_bytes)
    header = derived_header(ledger, group, {"by": "compact", "history": "current"}, group.run_ids, per_shard)
    count = sum(selection.shares[run_id].num_images for run_id in group.run_ids)
    return Derivation(header, PlanCounts(count, count, 0, 0, 0), group.run_ids, per_shard)


def _superseded(ledger: Ledger, rows: Sequence[RunRow], holders: set[str]) -> tuple[str, ...]:
    """Runs older than every run that holds a current row, up to the last complete one of them.

    No row of theirs is the latest of an image that is not deleted. Of one that is, every older row goes too.
    """
    older: list[str] = []
    for row in rows:
        if row.run_id in holders:
            break
        older.append(row.run_id)
    if not older:
        return ()
    partial = [row.run_id for row in ledger.run_rows() if row.status == "partial" and row.run_id < older[-1]]
    return tuple(sorted([*older, *partial]))


def _compact_all(ledger: Ledger, rows: Sequence[RunRow], file_bytes: int, say: Say) -> Compaction:
    originals = {_original(row) for row in rows} - {None}
    made = []
    for row in rows:
        if row.run_id in originals or _original(row) is not None:
            continue
        run_id = _next_id(row.run_id, ledger.run_ids(), [other.run_id for other in rows])
        twin = _twin(ledger, row, run_id, file_bytes, say)
        if twin is not None:
            made.append(twin)
            originals.add(row.run_id)
    there = {row.run_id for row in rows}
    return Compaction(tuple(made), tuple(sorted(run_id for run_id in originals if run_id in there)))


def _original(row: RunRow) -> str | None:
    """The run that this one is the twin of."""
    derived = derivation_of(row.config) or {}
    return str(derived["from"][0]) if derived.get("history") == "all" else None


def _twin(ledger: Ledger, row: RunRow, run_id: str | None, file_bytes: int, say: Say) -> RunRow | None:
    """The same rows in fewer files, in a run of this id; None where they are not fewer, or there is no id."""
    with select_latest(ledger, [row.run_id]) as selection:
        (group,) = groups_of(ledger, [row], by_policy=True)
        per_shard = images_per_file(ledger.output, [row], file_bytes)
        header = replace(
            derived_header(ledger, group, {"by": "compact", "history": "all"}, group.run_ids, per_shard),
            run_id=run_id or "",
            previous_run_id=row.previous_run_id,
            started_at=row.started_at,
        )
        counts = read_plan(ledger.output, row.run_id).counts
        # One part of images, sorted as one.
        counts = replace(counts, num_changed=counts.num_changed + counts.num_stale, num_stale=0)
        derivation = Derivation(header, counts, (row.run_id,), per_shard, keeps_deleted=True)
        if len(ledger.committed(row.run_id)) <= num_shards(selection, derivation):
            return None
        if run_id is None:
            say(f"run {row.run_id} is left as it is: there is no run_id between it and the next")
            return None
        return derive(ledger, selection, derivation, _as_they_are, say)


def _next_id(run_id: str, taken: Collection[str], complete: Sequence[str]) -> str | None:
    """The least free id greater than this one, of the same second and before every other complete run."""
    second, _, number = run_id.partition("-")
    later = min((other for other in complete if other > run_id), default="9")
    for following in range(int(number, 16) + 1, 1 << 32):
        candidate = f"{second}-{following:08x}"
        if candidate >= later:
            return None
        if candidate not in taken:
            return candidate
    return None


def _as_they_are(rows: Rows) -> Rows:
    return rows
