"""What the runs after one run, up to another, changed for readers: box by box, image by image, and in sum.

The state as of a run is the latest row of each image in complete runs up to it; a comparison is of two such states.
Only images with a row in a run after the first can differ, and only they are looked at. Knows no command.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchdet.analysis.account import Account
from batchdet.analysis.alarms import raised
from batchdet.analysis.box_changes import BOX_SCHEMA, IMAGE_SCHEMA, box_rows, find_changes, image_rows
from batchdet.analysis.config import DiffConfig
from batchdet.analysis.history import History, read_history
from batchdet.analysis.states import Span, States, open_states
from batchdet.errors import ConfigError, OutputError
from batchdet.records import RunRow
from batchdet.storage.filesystem import Store
from batchdet.storage.plan import derivation_of
from batchdet.storage.schema import Encoding, writer_options

SUMMARY = "summary.json"
"""Name of the account in the folder of a comparison; written last."""

FILE_ROWS = 1 << 20
"""Rows after which a file of changes is full."""

_ENCODINGS = {
    "changes": Encoding(
        dictionary=(
            "image_uri",
            "image_change",
            "change",
            "category_before",
            "category_after",
            "run_before",
            "run_after",
        ),
        sorted_by=("image_uri",),
    ),
    "images": Encoding(
        dictionary=("change", "run_before", "run_after", "status_before", "status_after", "failure_after"),
        sorted_by=("image_uri",),
    ),
}
_PART = re.compile(r"(changes|images)-\d{5}\.parquet")


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Some of the images that differ, in the order of their URIs.

    Attributes:
        images: rows of `box_changes.IMAGE_SCHEMA`.
        boxes: rows of `box_changes.BOX_SCHEMA`, of those images.
    """

    images: pa.Table
    boxes: pa.Table


def compare_runs(
    output: Store,
    run_before: str | None,
    run_after: str,
    config: DiffConfig,
    take: Callable[[ChangeBatch], None] | None = None,
) -> dict[str, Any]:
    """Compare what readers saw as of one run with what they see as of a later one.

    Args:
        output: the output folder.
        run_before: a complete run; None compares with nothing.
        run_after: a later complete run.
        config: what counts as a change, and what is too much of it.
        take: is given every change, batch by batch; a batch is all that is held.

    Returns:
        The summary: one JSON document, see the README.

    Raises:
        ConfigError: the runs are not in order.
        OutputError: there is no such complete run, or a file is damaged.
        StorageError: a file cannot be read.
    """
    return _compare(output, _rows_between(output, run_before, run_after), run_before, config, take)


def _compare(
    output: Store,
    rows: Sequence[RunRow],
    run_before: str | None,
    config: DiffConfig,
    take: Callable[[ChangeBatch], None] | None,
) -> dict[str, Any]:
    span = _span(rows, run_before)
    account = Account(span.categories)
    with open_states(output, span, config.compare.memory_mib) as states:
        account.run_before.add_rows(states.population())
        for block in states.blocks():
            changes = find_changes(block.before, block.after, config.compare)
            account.add(block, changes)
            if take is not None:
                boxes = box_rows(block, changes, span.categories, config.compare.keep_unchanged)
                take(ChangeBatch(image_rows(block, changes), boxes))
        return _summary(account, states, rows, span, config)


def write_changes(
    output: Store, run_before: str | None, run_after: str, config: DiffConfig, to: Store
) -> dict[str, Any]:
    """Compare two runs (see `compare_runs`) and write what changed to a folder, the summary last.

    `changes-00000.parquet` … hold the boxes, `images-00000.parquet` … the images, `summary.json` the account. What an
    earlier comparison left there is replaced.

    Raises:
        ConfigError, OutputError: as `compare_runs`.
        StorageError: a file cannot be read or written.
    """
    rows = _rows_between(output, run_before, run_after)
    to.delete(SUMMARY)
    parts = [_Parts(to, "images", IMAGE_SCHEMA), _Parts(to, "changes", BOX_SCHEMA)]

    def take(batch: ChangeBatch) -> None:
        for part, table in zip(parts, (batch.images, batch.boxes), strict=True):
            part.add(table)

    summary = _compare(output, rows, run_before, config, take)
    written = {name for part in parts for name in part.finish()}
    for name in list(to.list("")):
        if _PART.fullmatch(name) and name not in written:
            to.delete(name)
    text = json.dumps(summary, ensure_ascii=False, allow_nan=False, indent=1)
    to.write_bytes(SUMMARY, f"{text}\n".encode())
    return summary


class _Parts:
    """One table as Parquet files of at most `FILE_ROWS` rows and a batch; always at least one."""

    def __init__(self, to: Store, table: str, schema: pa.Schema) -> None:
        self._to = to
        self._table = table
        self._schema = schema
        self._names: list[str] = []
        self._begin()

    def add(self, rows: pa.Table) -> None:
        self._writer.write_table(rows)
        self._rows += rows.num_rows
        if self._rows >= FILE_ROWS:
            self._end()
            self._begin()

    def finish(self) -> list[str]:
        """Write what is held; the names of all files."""
        if self._rows or not self._names:
            self._end()
        return self._names

    def _begin(self) -> None:
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(
            self._sink, self._schema, **writer_options(self._schema, _ENCODINGS[self._table])
        )
        self._rows = 0

    def _end(self) -> None:
        self._writer.close()
        name = f"{self._table}-{len(self._names):05d}.parquet"
        self._to.write_bytes(name, self._sink.getvalue().to_pybytes())
        self._names.append(name)


def _rows_between(output: Store, run_before: str | None, run_after: str) -> list[RunRow]:
    """Rows of the complete runs up to the later one, ascending."""
    history = read_history(output)
    for run_id in (run_before, run_after):
        if run_id is not None:
            _require_complete(output, history, run_id)
    if run_before is not None and run_before >= run_after:
        same = "is the same run twice" if run_before == run_after else "is later than the second run; swap them"
        raise ConfigError(f"run {run_before} {same}")
    return sorted(
        (row for row in history.closed if row.status == "complete" and row.run_id <= run_after),
        key=lambda row: row.run_id,
    )


def _require_complete(output: Store, history: History, run_id: str) -> None:
    found = next((row for row in history.closed if row.run_id == run_id), None)
    if found is not None and found.status == "complete":
        return
    if run_id in history.run_ids:
        state = "open" if found is None else found.status
        raise OutputError(f"run {run_id} of {output.uri} is {state}: readers see complete runs only")
    raise OutputError(f"run {run_id}: {output.uri} has no such run; newest is {history.run_ids[0]}")


def _span(rows: Sequence[RunRow], run_before: str | None) -> Span:
    is_earlier = [run_before is not None and row.run_id <= run_before for row in rows]
    return Span(
        earlier=[row.run_id for row, earlier in zip(rows, is_earlier, strict=True) if earlier],
        later=[row.run_id for row, earlier in zip(rows, is_earlier, strict=True) if not earlier],
        categories=sorted({name for row in rows for name in row.categories}),
        rewritten=[row.run_id for row in rows if (derivation_of(row.config) or {}).get("by") == "compact"],
    )


def _summary(
    account: Account, states: States, rows: Sequence[RunRow], span: Span, config: DiffConfig
) -> dict[str, Any]:
    row_before = next((row for row in rows if span.earlier and row.run_id == span.earlier[-1]), None)
    run_images = 0 if row_before is None else row_before.num_labelled
    told = account.tell(states.standing_before(), states.standing_change(), run_images)
    told["failures"]["codes"] = dict(states.failure_codes())
    summary = {
        "run_before": None if row_before is None else _identity(row_before),
        "run_after": _identity(rows[-1]),
        "later_runs": list(span.later),
        "compare": config.compare.model_dump(mode="json", exclude={"keep_unchanged", "memory_mib"}),
        **told,
    }
    alarms = None if config.alarms is None else [asdict(alarm) for alarm in raised(summary, config.alarms)]
    return {**summary, "alarms": alarms}


def _identity(row: RunRow) -> dict[str, str]:
    return {
        "run_id": row.run_id,
        "model": row.model,
        "model_digest": row.model_digest,
        "policy_digest": row.policy_digest,
    }
