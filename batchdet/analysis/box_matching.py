"""Which box of before is which box of after, for the images of a block at once. Knows no runs and no files.

Shape shorthand: B boxes before and A boxes after, of all images of the block together; P pairs; M matches.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchdet.records import BoolArray, IntArray

DoubleArray = npt.NDArray[np.float64]

PAIRS_HELD = 1 << 21
"""Pairs of boxes compared at a time: what bounds memory, whatever the number of boxes an image has."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Detections of the images of a block on one side.

    Attributes:
        owner: [N] int64, which image a box is of; ascending.
        corners: [N, 4] float64 xyxy pixels.
        categories: [N] int64, numbers that mean the same on both sides.
        scores: [N] float64.
        places: [N] int64, detection_index.
    """

    owner: IntArray
    corners: DoubleArray
    categories: IntArray
    scores: DoubleArray
    places: IntArray


@dataclass(frozen=True, slots=True)
class Matches:
    """Pairs of boxes that are one object.

    Attributes:
        before: [M] int64 positions among the boxes before, ascending.
        after: [M] int64 positions among the boxes after.
        iou: [M] float64.
    """

    before: IntArray
    after: IntArray
    iou: DoubleArray


def match_boxes(before: Boxes, after: Boxes, iou_threshold: float) -> Matches:
    """Match boxes of the same image, each at most once, those of one category first.

    First among pairs of one category, then among what is left whatever its category: take the pair of the greatest IoU
    (ties: the lower position before, then after), and go on until no pair reaches the threshold.

    Args:
        before: owners ascend.
        after: owners ascend.
        iou_threshold: over 0; pairs under it never match.
    """
    pairs = _overlapping(before, after, iou_threshold)
    alike = before.categories[pairs.before] == after.categories[pairs.after]
    first = _greedy(_chosen(pairs, alike), len(before.owner), len(after.owner))
    free_before, free_after = np.ones(len(before.owner), np.bool_), np.ones(len(after.owner), np.bool_)
    free_before[first.before] = False
    free_after[first.after] = False
    left = ~alike & free_before[pairs.before] & free_after[pairs.after]
    second = _greedy(_chosen(pairs, left), len(before.owner), len(after.owner))
    both = _joined([first, second])
    return _chosen(both, np.argsort(both.before))


def _overlapping(before: Boxes, after: Boxes, iou_threshold: float) -> Matches:
    """Every pair of one image that reaches the threshold."""
    return _joined([_reaching(before, after, rows, columns, iou_threshold) for rows, columns in _pairs(before, after)])


def _pairs(before: Boxes, after: Boxes) -> Iterator[tuple[IntArray, IntArray]]:
    """Positions of all pairs of one image, some at a time."""
    # [B] where the partners of a box begin and how many there are
    starts = np.searchsorted(after.owner, before.owner, "left")
    counts = np.searchsorted(after.owner, before.owner, "right") - starts
    total = np.concatenate([[0], np.cumsum(counts)])
    begin = 0
    while begin < len(counts):
        end = max(begin + 1, int(np.searchsorted(total, total[begin] + PAIRS_HELD, "right")) - 1)
        number = counts[begin:end]
        rows = np.repeat(np.arange(begin, end), number)
        # position in the pairs of this turn, less where the pairs of its row begin
        within = np.arange(len(rows)) - np.repeat(total[begin:end] - total[begin], number)
        yield rows, np.repeat(starts[begin:end], number) + within
        begin = end


def _reaching(before: Boxes, after: Boxes, rows: IntArray, columns: IntArray, iou_threshold: float) -> Matches:
    for low, high in ((0, 2), (1, 3)):
        # most pairs are apart along one axis: two comparisons spare them the arithmetic
        meets = before.corners[:, low].take(rows) <= after.corners[:, high].take(columns)
        meets &= after.corners[:, low].take(columns) <= before.corners[:, high].take(rows)
        kept = np.flatnonzero(meets)
        rows, columns = rows.take(kept), columns.take(kept)
    iou = pairwise_iou(before.corners.take(rows, axis=0), after.corners.take(columns, axis=0))
    reaches = np.flatnonzero(iou >= iou_threshold)
    return Matches(rows.take(reaches), columns.take(reaches), iou.take(reaches))


def pairwise_iou(left: DoubleArray, right: DoubleArray) -> DoubleArray:
    """[P] intersection over union of [P, 4] and [P, 4] xyxy boxes; of two equal boxes without area it is 1.

    A box that is not finite has NaN, which reaches no threshold.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        sides = np.minimum(left[:, 2:], right[:, 2:]) - np.maximum(left[:, :2], right[:, :2])
        shared = np.maximum(sides[:, 0], 0) * np.maximum(sides[:, 1], 0)
        union = _areas(left) + _areas(right) - shared
        found: DoubleArray = np.where(union == 0, (left == right).all(axis=1), shared / union)
    return found


def _areas(boxes: DoubleArray) -> DoubleArray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _greedy(pairs: Matches, num_before: int, num_after: int) -> Matches:
    """Matches of pairs taken from the greatest IoU down.

    Each turn takes every pair that comes first for both its boxes: the same pairs that one after another would give.
    """
    pairs = _chosen(pairs, np.lexsort((pairs.after, pairs.before, -pairs.iou)))
    taken = []
    while len(pairs.iou):
        rank = np.arange(len(pairs.iou))
        best_before, best_after = _first_ranks(pairs.before, num_before), _first_ranks(pairs.after, num_after)
        wins = (best_before[pairs.before] == rank) & (best_after[pairs.after] == rank)
        winners = _chosen(pairs, wins)
        taken.append(winners)
        used_before, used_after = np.zeros(num_before, np.bool_), np.zeros(num_after, np.bool_)
        used_before[winners.before] = True
        used_after[winners.after] = True
        pairs = _chosen(pairs, ~(used_before[pairs.before] | used_after[pairs.after]))
    return _joined(taken)


def _first_ranks(positions: IntArray, size: int) -> IntArray:
    """[size] the least rank at which a position occurs."""
    first = np.full(size, len(positions))
    # of repeated positions the last assignment stays: backwards, that is the first
    first[positions[::-1]] = np.arange(len(positions))[::-1]
    return first


def _chosen(pairs: Matches, which: BoolArray | IntArray) -> Matches:
    return Matches(pairs.before[which], pairs.after[which], pairs.iou[which])


def _joined(parts: list[Matches]) -> Matches:
    parts = [*parts, Matches(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float64))]
    return Matches(
        np.concatenate([part.before for part in parts]),
        np.concatenate([part.after for part in parts]),
        np.concatenate([part.iou for part in parts]),
    )
