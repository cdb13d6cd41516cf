"""A derived run: committed rows become the rows of a new run. Knows no model, and not why rows are rewritten.

Choose rows, open a plan over them, stream them shard by shard through a transformation, commit, close. Done is
committed: what was begun and not ended is gone on with, as long as it is what would be begun now. Of an image's row
only `shard_id` is new, and what the transformation changes: `labelled_at` stays the time at which its detections were
computed, and size, etag, digest and decoder stay those of the bytes they were computed from.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain

import numpy as np
import pyarrow as pa

from batchdet.config import SAME_FIELDS, canonical_json, recorded_at
from batchdet.errors import NotFoundError, OutputError
from batchdet.records import PlanCounts, RunRow
from batchdet.storage.filesystem import Store
from batchdet.storage.gathering import Gatherer, Rows
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import PlanHeader, RunPlan, new_run_id, plan_name, read_plan
from batchdet.storage.planning import new_plan, write_plan
from batchdet.storage.schema import DETECTIONS, IMAGES
from batchdet.storage.selection import Selection
from batchdet.storage.shard_writer import ShardWriter

PIECE_IMAGES = 16_384
"""Images whose rows are in memory at once."""
FILE_BYTES = 128 << 20
"""Aimed at for the larger file of a shard."""
MOST_IMAGES = 1 << 20
"""Images of a shard, however little they take."""

Transform = Callable[[Rows], Rows]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one kind, any of whose rows may lie in one derived run.

    Attributes:
        rows: of the runs, oldest first.
        header: of the newest one's plan.
    """

    rows: tuple[RunRow, ...]
    header: PlanHeader

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The runs, oldest first."""
        return tuple(row.run_id for row in self.rows)

    @property
    def config(self) -> dict[str, object]:
        """The newest run's."""
        config: dict[str, object] = json.loads(self.header.config)
        return config


@dataclass(frozen=True, slots=True)
class Derivation:
    """What a derived run is made of.

    Attributes:
        header: of its plan; `config` says how it is derived.
        counts: of its plan.
        run_ids: runs whose chosen rows it takes.
        images_per_shard: of every shard but the last.
        keeps_deleted: the rows of deleted images too, in shards of their own after all others.
    """

    header: PlanHeader
    counts: PlanCounts
    run_ids: tuple[str, ...]
    images_per_shard: int
    keeps_deleted: bool = False


def groups_of(ledger: Ledger, rows: Sequence[RunRow], *, by_policy: bool) -> list[Group]:
    """Runs by model and settings that change rows, and by policy if asked; the group of the newest run last.

    Raises:
        OutputError: the plan of a run is gone or damaged.
    """
    found: dict[str, list[RunRow]] = {}
    for row in sorted(rows, key=lambda row: row.run_id):
        key = canonical_json([row.model_digest, row.policy_digest if by_policy else None, _settings(row.config)])
        found.setdefault(key, []).append(row)
    ordered = sorted(found.values(), key=lambda group: group[-1].run_id)
    return [Group(tuple(group), _read_header(ledger.output, group[-1].run_id)) for group in ordered]


def require_none_open(ledger: Ledger) -> None:
    """Refuse while a run that labels is open, or was stopped and goes on: its rows would lie under later ones.

    Raises:
        OutputError
    """
    stopped = ledger.stopped_run()
    for plan in (*ledger.open_runs(), *([stopped] if stopped else [])):
        if plan.header.derived is None:
            raise OutputError(
                f"run {plan.run_id} of {ledger.output.uri} is open; finish it with the job it was begun with, or close "
                "it as partial with `batchdet label --new-run`"
            )


def require_complete(ledger: Ledger) -> list[RunRow]:
    """The rows of the complete runs, newest first.

    Raises:
        OutputError: there is none.
    """
    rows = ledger.complete_runs()
    if not rows:
        raise OutputError(f"{ledger.output.uri}: no complete run here; is this the --output of a `batchdet label`?")
    return rows


def images_per_file(output: Store, rows: Sequence[RunRow], file_bytes: int) -> int:
    """Images of a shard whose larger file gets about so many bytes, by what the runs' files take.

    Args:
        output: the output folder.
        rows: the runs.
        file_bytes: aimed at.
    """
    images = sum(row.num_labelled + row.num_failed + row.num_deleted for row in rows)
    if not images:
        return MOST_IMAGES
    largest = max(
        sum(sum(output.sizes(f"{table}/run_id={row.run_id}").values()) for row in rows)
        for table in ("images", "detections")
    )
    return max(1, min(MOST_IMAGES, file_bytes * images // max(largest, 1)))


def derived_header(
    ledger: Ledger, group: Group, how: Mapping[str, object], run_ids: Sequence[str], per_shard: int
) -> PlanHeader:
    """The header of a run derived from a group: the newest run's, with a new id, and what it is derived from.

    Args:
        ledger: of the output.
        group: what it is derived from.
        how: what was done.
        run_ids: runs whose rows it takes.
        per_shard: images of a shard; with `how` and `run_ids` it tells the run from every other derived one.
    """
    now = datetime.now(UTC)
    derived = {**how, "from": list(run_ids), "images_per_shard": per_shard}
    return replace(
        group.header,
        run_id=new_run_id(now, ledger.run_ids()),
        previous_run_id=ledger.complete_runs()[0].run_id,
        started_at=now,
        config=canonical_json(group.config | {"derived": derived}),
    )


def derive(ledger: Ledger, selection: Selection, derivation: Derivation, transform: Transform, say: Say) -> RunRow:
    """Make a derived run, or go on with it; its row as written.

    Raises:
        OutputError: a committed file is damaged.
        StorageError: the output cannot be read or written; the same command goes on.
    """
    plan = _begun(ledger, derivation, say) or _open(ledger, selection, derivation)
    committed = ledger.committed(plan.run_id)
    gatherer = Gatherer(ledger.output, selection.run_ids)
    backends = {name for run_id in derivation.run_ids for name in selection.shares[run_id].backends}
    stamp = replace(plan.header.stamp, backend="; ".join(sorted(backends)) or None)
    for shard_id, chosen in enumerate(_chosen(selection, derivation)):
        if shard_id not in committed:
            writer = ShardWriter(stamp)
            for start in range(0, chosen.num_rows, PIECE_IMAGES):
                rows = transform(gatherer.gather(chosen.slice(start, PIECE_IMAGES)))
                writer.add(_numbered(rows.images, IMAGES, shard_id), _numbered(rows.detections, DETECTIONS, shard_id))
            ledger.write_shard(plan.run_id, shard_id, *writer.finish())
        say(f"run {plan.run_id}: shard {shard_id + 1} of {plan.num_shards} committed")
    row = ledger.closing_row(plan, "complete", 0.0)
    ledger.close(row)
    return row


def give_up_begun(ledger: Ledger, say: Say) -> None:
    """Close derived runs as partial that were begun and are not wanted any more."""
    for plan in ledger.open_runs():
        if plan.header.derived is not None:
            say(f"closing run {plan.run_id} as partial: what it was made of is no longer wanted so")
            ledger.close(ledger.closing_row(plan, "partial", 0.0))


def num_shards(selection: Selection, derivation: Derivation) -> int:
    """Shards of the derived run."""
    shares = [selection.shares[run_id] for run_id in derivation.run_ids]
    parts = [sum(share.num_images for share in shares)]
    if derivation.keeps_deleted:
        parts.append(sum(share.num_deleted for share in shares))
    return sum(-(-count // derivation.images_per_shard) for count in parts)


def _begun(ledger: Ledger, derivation: Derivation, say: Say) -> RunPlan | None:
    """The open run that is this derivation."""
    for plan in ledger.open_runs():
        header = plan.header
        same = (header.derived, header.model.digest, header.policy_digest, plan.counts)
        wanted = derivation.header
        if same == (wanted.derived, wanted.model.digest, wanted.policy_digest, derivation.counts):
            say(f"going on with run {plan.run_id}")
            return plan
    return None


def _open(ledger: Ledger, selection: Selection, derivation: Derivation) -> RunPlan:
    plan = new_plan(derivation.header, derivation.counts, derivation.images_per_shard)
    write_plan(ledger.output, plan, _chosen(selection, derivation))
    return plan


def _chosen(selection: Selection, derivation: Derivation) -> Iterator[pa.RecordBatch]:
    """The choice, a batch a shard."""
    kinds = (False, True) if derivation.keeps_deleted else (False,)
    return chain.from_iterable(
        selection.batches(derivation.run_ids, derivation.images_per_shard, deleted=deleted) for deleted in kinds
    )


def _numbered(table: pa.Table, schema: pa.Schema, shard_id: int) -> pa.Table:
    place = schema.get_field_index("shard_id")
    return table.set_column(place, schema.field(place), pa.array(np.full(len(table), shard_id, np.int32)))


def _settings(config: str) -> list[object]:
    """Values of the fields that change rows; None for those that a run of an older version does not know."""
    tree = json.loads(config)
    return [recorded_at(tree, field, None) for field in SAME_FIELDS]


def _read_header(output: Store, run_id: str) -> PlanHeader:
    try:
        return read_plan(output, run_id).header
    except NotFoundError as error:
        raise OutputError(f"{output.child_uri(plan_name(run_id))} is gone: its rows cannot be rewritten") from error
