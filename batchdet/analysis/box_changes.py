"""What became of each box of a block of images, and of each image: rows of two tables. Knows no runs and no files.

Shape shorthand: R changes of a block (every box of either side is in exactly one), N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchdet.analysis.box_matching import Boxes, DoubleArray, match_boxes
from batchdet.analysis.config import CompareConfig
from batchdet.analysis.states import IMAGE_CHANGES, Block
from batchdet.records import BoolArray, IntArray

BOX_CHANGES = ("added", "removed", "moved", "rescored", "reclassed", "unchanged")
"""What becomes of an object; the code of a change is its place here.

An object of another category is reclassed, else if its box moved it is moved, else if its score differs rescored.
"""

ADDED, REMOVED, MOVED, RESCORED, RECLASSED, UNCHANGED = range(len(BOX_CHANGES))
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_WORD = pa.dictionary(pa.int32(), pa.string())

_IMAGE_COLUMNS: dict[str, pa.DataType] = {
    "image_uri": pa.string(),
    "change": _WORD,
    "same_content": pa.bool_(),
    "run_before": pa.string(),
    "run_after": pa.string(),
    "status_before": pa.string(),
    "status_after": pa.string(),
    "failure_after": pa.string(),
    **dict.fromkeys(BOX_CHANGES, pa.int32()),
}
IMAGE_SCHEMA = pa.schema(_IMAGE_COLUMNS)
"""One row per image that a run after the first has a row for, sorted by image_uri; counts of its accepted objects.

same_content is null where either side has no digest. failure_after is `stage:code`.
"""

_BOX_COLUMNS: dict[str, pa.DataType] = {
    "image_uri": pa.string(),
    "image_change": _WORD,
    "change": _WORD,
    "category_before": _WORD,
    "category_after": _WORD,
    "score_before": pa.float32(),
    "score_after": pa.float32(),
    "iou": pa.float32(),
    **{f"{name}_{side}": pa.float32() for side in ("before", "after") for name in _SIDES},
    "detection_index_before": pa.int32(),
    "detection_index_after": pa.int32(),
    "run_before": pa.string(),
    "run_after": pa.string(),
}
BOX_SCHEMA = pa.schema(_BOX_COLUMNS)
"""One row per changed object, sorted by image_uri, objects of before first; a side it is not on is null.

An added or removed object has no iou.
"""


@dataclass(frozen=True, slots=True)
class BoxChanges:
    """The objects of a block.

    Attributes:
        kind: [R] places in `BOX_CHANGES`.
        owner: [R] rows of the block's images, ascending.
        before, after: [R] positions among the boxes of that side; -1 where it is not on it.
        iou: [R] NaN where it is on one side only.
    """

    kind: IntArray
    owner: IntArray
    before: IntArray
    after: IntArray
    iou: DoubleArray


def find_changes(before: Boxes, after: Boxes, config: CompareConfig) -> BoxChanges:
    """Match the boxes of two sides (see `match_boxes`) and say what became of each."""
    matches = match_boxes(before, after, config.iou_threshold)
    shift = np.abs(before.corners[matches.before] - after.corners[matches.after]).max(axis=1, initial=0)
    rescored = np.abs(before.scores[matches.before] - after.scores[matches.after]) > config.rescored_by
    kind = np.where(rescored, RESCORED, UNCHANGED)
    kind[(matches.iou < config.moved_iou) | (shift > config.moved_px)] = MOVED
    kind[before.categories[matches.before] != after.categories[matches.after]] = RECLASSED
    removed, added = _others(len(before.owner), matches.before), _others(len(after.owner), matches.after)
    none, nan = np.int64(-1), np.float64(np.nan)
    found = BoxChanges(
        kind=np.concatenate([kind, np.full(len(removed), REMOVED), np.full(len(added), ADDED)]),
        owner=np.concatenate([before.owner[matches.before], before.owner[removed], after.owner[added]]),
        before=np.concatenate([matches.before, removed, np.full(len(added), none)]),
        after=np.concatenate([matches.after, np.full(len(removed), none), added]),
        iou=np.concatenate([matches.iou, np.full(len(removed) + len(added), nan)]),
    )
    order = np.lexsort((found.after, found.before, found.kind == ADDED, found.owner))
    return _chosen(found, order)


def box_rows(block: Block, changes: BoxChanges, categories: Sequence[str], keep_unchanged: bool) -> pa.Table:
    """Rows of `BOX_SCHEMA`."""
    kept = changes if keep_unchanged else _chosen(changes, changes.kind != UNCHANGED)
    owner = pa.array(kept.owner, pa.int64())
    columns: dict[str, Any] = {
        "image_uri": block.images.column("image_uri").take(owner),
        "image_change": _words(block.changes[kept.owner], IMAGE_CHANGES),
        "change": _words(kept.kind, BOX_CHANGES),
        "iou": pa.array(kept.iou, pa.float32(), from_pandas=True),
        "run_before": block.images.column("run_before").take(owner),
        "run_after": block.images.column("run_after").take(owner),
        **_side_columns("before", block.before, kept.before, categories),
        **_side_columns("after", block.after, kept.after, categories),
    }
    return pa.table([columns[name] for name in BOX_SCHEMA.names], schema=BOX_SCHEMA)


def image_rows(block: Block, changes: BoxChanges) -> pa.Table:
    """Rows of `IMAGE_SCHEMA`."""
    size, kinds = block.images.num_rows, len(BOX_CHANGES)
    # [N, kinds] objects of each image by what became of them
    counts = np.bincount(changes.owner * kinds + changes.kind, minlength=size * kinds).reshape(size, kinds)
    columns: dict[str, Any] = {name: block.images.column(name) for name in IMAGE_SCHEMA.names if name in _KEPT}
    columns["change"] = _words(block.changes, IMAGE_CHANGES)
    columns |= {name: pa.array(counts[:, code], pa.int32()) for code, name in enumerate(BOX_CHANGES)}
    return pa.table([columns[name] for name in IMAGE_SCHEMA.names], schema=IMAGE_SCHEMA)


_KEPT = frozenset(IMAGE_SCHEMA.names) - {"change", *BOX_CHANGES}


def _side_columns(side: str, boxes: Boxes, positions: IntArray, categories: Sequence[str]) -> dict[str, Any]:
    absent = positions < 0

    def column(values: npt.NDArray[Any], kind: pa.DataType) -> Any:
        # an object that is not on this side takes any box's value under its null
        found = values[np.where(absent, 0, positions)] if len(values) else np.zeros(len(positions))
        return pa.array(found, kind, mask=absent)

    codes = column(boxes.categories, pa.int32())
    return {
        f"category_{side}": pa.DictionaryArray.from_arrays(codes, pa.array(categories, pa.string())),
        f"score_{side}": column(boxes.scores, pa.float32()),
        **{f"{name}_{side}": column(boxes.corners[:, place], pa.float32()) for place, name in enumerate(_SIDES)},
        f"detection_index_{side}": column(boxes.places, pa.int32()),
    }


def _words(codes: IntArray, words: Sequence[str]) -> "pa.DictionaryArray[Any, Any]":
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(words, pa.string()))


def _others(size: int, positions: IntArray) -> IntArray:
    """Positions that are not among those given."""
    free = np.ones(size, np.bool_)
    free[positions] = False
    return np.flatnonzero(free)


def _chosen(changes: BoxChanges, which: BoolArray | IntArray) -> BoxChanges:
    return BoxChanges(
        changes.kind[which], changes.owner[which], changes.before[which], changes.after[which], changes.iou[which]
    )
