"""What readers see before and after: the images that differ, and their accepted boxes, in order, some at a time.

An image's state as of a run is its latest row in complete runs up to that run. Knows no matching of boxes.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from batchdet.analysis.box_matching import Boxes
from batchdet.analysis.committed import CommittedFileSystem, list_committed
from batchdet.analysis.drift import SCORE_BINS
from batchdet.analysis.query import define_views, one_line
from batchdet.errors import BatchdetError, OutputError
from batchdet.records import BoolArray, IntArray
from batchdet.storage.filesystem import Store

BLOCK_IMAGES = 16_384
BLOCK_DETECTIONS = 1 << 18
"""A block ends before it has more of either, but holds at least one image."""

IMAGE_CHANGES = (
    "new",
    "new_failed",
    "relabelled",
    "newly_failed",
    "recovered",
    "still_failed",
    "deleted",
    "never_seen",
)
"""What becomes of an image that a run has a row for; the code of a change is its place here.

new, new_failed: readers did not see it before (no row, or deleted) · relabelled: labelled before and after ·
newly_failed: labelled before · recovered, still_failed: failed before · deleted: seen before · never_seen: came and
went. A row that a compaction copied as it was is none of these.
"""

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_STATE = "image_uri, run_id, status, failure_stage, failure_code, content_digest, num_detections, labelled_at"
_LATEST = "QUALIFY ROW_NUMBER() OVER (PARTITION BY image_uri ORDER BY run_id DESC) = 1"
_POLICY = "(SELECT policy_digest FROM runs WHERE run_id = {}.run_id)"
_CHANGED = f"""
CREATE TABLE changed AS WITH
after AS MATERIALIZED (SELECT {_STATE} FROM all_images WHERE run_id IN ({{later}}) {_LATEST}),
before AS (SELECT {_STATE} FROM all_images
  WHERE run_id IN ({{earlier}}) AND image_uri IN (SELECT image_uri FROM after) {_LATEST}),
paired AS (SELECT a.image_uri,
  nullif(b.status, 'deleted') AS status_before, nullif(a.status, 'deleted') AS status_after,
  b.run_id AS run_before, a.run_id AS run_after,
  CASE WHEN a.status = 'failed' THEN concat(a.failure_stage, ':', a.failure_code) END AS failure_after,
  a.content_digest = b.content_digest AS same_content,
  b.num_detections AS num_before, a.num_detections AS num_after
  FROM after a LEFT JOIN before b ON a.image_uri = b.image_uri
  WHERE NOT coalesce(a.run_id IN ({{rewritten}}) AND a.labelled_at = b.labelled_at
    AND {_POLICY.format("a")} = {_POLICY.format("b")}, false))
SELECT row_number() OVER (ORDER BY image_uri) - 1 AS place, *, CASE
  WHEN status_before IS NULL AND status_after IS NULL THEN {IMAGE_CHANGES.index("never_seen")}
  WHEN status_after IS NULL THEN {IMAGE_CHANGES.index("deleted")}
  WHEN status_before IS NULL AND status_after = 'labelled' THEN {IMAGE_CHANGES.index("new")}
  WHEN status_before IS NULL THEN {IMAGE_CHANGES.index("new_failed")}
  WHEN status_before = 'failed' AND status_after = 'labelled' THEN {IMAGE_CHANGES.index("recovered")}
  WHEN status_before = 'failed' THEN {IMAGE_CHANGES.index("still_failed")}
  WHEN status_after = 'labelled' THEN {IMAGE_CHANGES.index("relabelled")}
  ELSE {IMAGE_CHANGES.index("newly_failed")} END AS change
FROM paired ORDER BY place
"""  # noqa: S608
_SIDE = f"""
SELECT c.place, {{side}} AS side, d.detection_index, enum_code(d.category::detected)::INTEGER AS category, d.score,
  {", ".join(f"d.{name}" for name in _SIDES)}
FROM all_detections d INNER JOIN changed c ON d.image_uri = c.image_uri AND d.run_id = c.run_{{name}}
WHERE d.accepted AND c.status_{{name}} = 'labelled' AND d.run_id IN ({{runs}})
"""  # noqa: S608
_STANDING = """
SELECT count(*) FILTER (status <> 'deleted'), count(*) FILTER (status = 'failed'),
  coalesce(sum(num_detections) FILTER (status = 'labelled'), 0)::BIGINT
FROM (SELECT arg_max(status, run_id) AS status, arg_max(coalesce(num_detections, 0), run_id) AS num_detections
  FROM all_images WHERE run_id IN ({runs}) GROUP BY image_uri)
"""
_POPULATION = f"""
SELECT enum_code(category::detected)::INTEGER AS category,
  least(greatest(floor(score::DOUBLE * {SCORE_BINS}), 0), {SCORE_BINS - 1})::INTEGER AS bin,
  count(*) AS number, sum(score::DOUBLE) AS total
FROM all_detections WHERE accepted AND run_id = {{run}} GROUP BY ALL
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Span:
    """Complete runs of an output, split where a comparison begins.

    Attributes:
        earlier: run ids up to where it begins, ascending; empty compares with nothing.
        later: run ids after that, up to where it ends, ascending.
        categories: every name that a model of these runs gives, sorted.
        rewritten: of the later runs those that a compaction made: what they copied unchanged is no change.
    """

    earlier: Sequence[str]
    later: Sequence[str]
    categories: Sequence[str]
    rewritten: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Some of the images that differ, in order, with all their accepted boxes.

    Attributes:
        images: N rows: image_uri, change, same_content, run_, status_ and num_ of both sides, failure_after.
        changes: [N] places in `IMAGE_CHANGES`.
        same_content: [N] whether the bytes are known to be those labelled before.
        before, after: boxes; an owner is a row of `images`.
    """

    images: pa.Table
    changes: IntArray
    same_content: BoolArray
    before: Boxes
    after: Boxes


@dataclass(frozen=True, slots=True)
class Standing:
    """What readers see in all as of a run.

    Attributes:
        images: labelled or failed.
        failed: of them.
        detections: accepted.
    """

    images: int
    failed: int
    detections: int


class States:
    """The two states while they are compared; made by `open_states`."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, span: Span) -> None:
        self._connection = connection
        self._span = span

    def standing_before(self) -> Standing:
        """All that readers saw before; reads a row of every image of the history."""
        if not self._span.earlier:
            return Standing(0, 0, 0)
        return Standing(*self._rows(_STANDING.format(runs=_listed(self._span.earlier)))[0])

    def standing_change(self) -> Standing:
        """What the images that differ add to it."""
        sides = "count({0}.status_after) - count({0}.status_before)"
        failed = "count(*) FILTER (status_after = 'failed') - count(*) FILTER (status_before = 'failed')"
        boxes = [f"coalesce(sum(num_{side}) FILTER (status_{side} = 'labelled'), 0)" for side in ("after", "before")]
        query = f"SELECT {sides.format('changed')}, {failed}, ({' - '.join(boxes)})::BIGINT FROM changed"  # noqa: S608
        return Standing(*self._rows(query)[0])

    def failure_codes(self) -> Mapping[str, int]:
        """Images that fail and did not fail before, by `stage:code`, the commonest first."""
        codes = tuple(IMAGE_CHANGES.index(name) for name in ("new_failed", "newly_failed"))
        query = f"SELECT failure_after, count(*) FROM changed WHERE change IN {codes} GROUP BY 1 ORDER BY 2 DESC, 1"  # noqa: S608
        return {str(code): int(number) for code, number in self._rows(query)}

    def population(self) -> pa.Table:
        """Accepted detections of the last run before, counted: category, bin, number, total of scores."""
        run = _quoted(self._span.earlier[-1] if self._span.earlier else "")
        found: pa.Table = self._connection.sql(_POPULATION.format(run=run)).to_arrow_table()
        return found

    def blocks(self) -> Iterator[Block]:
        """The images that differ, in the order of their URIs; a block and a batch of detections are held."""
        detections = _InOrder(self._connection, self._detections_query())
        ((number,),) = self._rows("SELECT count(*) FROM changed")
        for begin in range(0, number, BLOCK_IMAGES):
            query = f"SELECT * FROM changed WHERE place >= {begin} AND place < {begin + BLOCK_IMAGES} ORDER BY place"  # noqa: S608
            images = self._connection.cursor().sql(query).to_arrow_table()
            for start, end in _cuts(images):
                yield _block(images.slice(start, end - start), begin + start, detections.up_to(begin + end))

    def _detections_query(self) -> str:
        sides = [_SIDE.format(side=1, name="after", runs=_listed(self._span.later))]
        if self._span.earlier:
            sides.append(_SIDE.format(side=0, name="before", runs=_listed(self._span.earlier)))
        return f"{' UNION ALL '.join(sides)} ORDER BY place, side, detection_index"

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query).fetchall()


@contextmanager
def open_states(output: Store, span: Span, memory_mib: int) -> Iterator[States]:
    """Find the images that differ between the two ends of a span.

    Args:
        output: the output folder.
        span: its runs.
        memory_mib: what DuckDB may hold; more goes to a temporary folder.

    Raises:
        OutputError: a file is damaged.
        StorageError: a file cannot be read.
    """
    filesystem = CommittedFileSystem(list_committed(output))
    with tempfile.TemporaryDirectory(prefix="batchdet-diff-") as folder:
        settings: dict[str, Any] = {"temp_directory": folder, "memory_limit": f"{memory_mib}MiB"}
        settings |= {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        with _mapped(output, filesystem), duckdb.connect(":memory:", config=settings) as connection:
            define_views(connection, filesystem)
            names = ", ".join(_quoted(name) for name in span.categories)
            connection.execute(f"CREATE TYPE detected AS ENUM ({names})")
            earlier, later = _listed(span.earlier), _listed(span.later)
            rewritten = _listed(span.rewritten)
            connection.execute(_CHANGED.format(earlier=earlier, later=later, rewritten=rewritten))
            yield States(connection, span)


@contextmanager
def _mapped(output: Store, filesystem: CommittedFileSystem) -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        damaged: BatchdetError = OutputError(f"{output.uri}: {one_line(str(error))}; see batchdet audit")
        raise filesystem.failure or damaged from error


class _InOrder:
    """Rows of a query, taken in order of their place."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, query: str) -> None:
        self._reader = pa.RecordBatchReader.from_stream(connection.cursor().sql(query))
        self._held: list[pa.RecordBatch] = []

    def up_to(self, place: int) -> pa.Table:
        """The rows not yet taken whose place is less."""
        while not self._held or self._held[-1].column("place")[-1].as_py() < place:
            try:
                batch = self._reader.read_next_batch()
            except StopIteration:
                break
            if batch.num_rows:
                self._held.append(batch)
        rows = pa.Table.from_batches(self._held, self._reader.schema)
        end = int(np.searchsorted(rows.column("place").to_numpy(), place))
        self._held = rows.slice(end).to_batches()
        return rows.slice(0, end)


def _cuts(images: pa.Table) -> Iterator[tuple[int, int]]:
    """Where blocks begin and end, by the detections that the rows state."""
    before, after = (np.nan_to_num(images.column(f"num_{side}").to_numpy()) for side in ("before", "after"))
    total = np.concatenate([[0], np.cumsum(before.astype(np.int64) + after.astype(np.int64))])
    begin = 0
    while begin < images.num_rows:
        end = max(begin + 1, int(np.searchsorted(total, total[begin] + BLOCK_DETECTIONS, "right")) - 1)
        yield begin, end
        begin = end


def _block(images: pa.Table, first: int, detections: pa.Table) -> Block:
    is_after = detections.column("side").to_numpy() == 1
    owner = detections.column("place").to_numpy() - first
    columns = {name: detections.column(name).to_numpy() for name in ("category", "detection_index", "score")}
    corners = np.stack([detections.column(name).to_numpy() for name in _SIDES], axis=1).astype(np.float64)

    def side(which: BoolArray) -> Boxes:
        return Boxes(
            owner=owner[which].astype(np.int64),
            corners=corners[which],
            categories=columns["category"][which].astype(np.int64),
            scores=columns["score"][which].astype(np.float64),
            places=columns["detection_index"][which].astype(np.int64),
        )

    changes = images.column("change").to_numpy().astype(np.int64)
    same = images.column("same_content").cast(pa.int8()).to_numpy() == 1  # a null is NaN there
    return Block(images, changes, same, side(~is_after), side(is_after))


def _listed(run_ids: Sequence[str]) -> str:
    """Run ids as SQL values; a list without any is of no run."""
    return ", ".join(_quoted(run_id) for run_id in run_ids) or "''"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
