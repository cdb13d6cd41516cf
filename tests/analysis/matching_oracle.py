"""What became of the boxes of one image, in plain Python: the slow and plain reading of the rule."""

from collections.abc import Sequence
from dataclasses import dataclass

from batchdet.analysis.config import CompareConfig


@dataclass(frozen=True)
class Box:
    """One accepted detection."""

    corners: tuple[float, float, float, float]
    score: float
    category: int | str


def iou(left: Box, right: Box) -> float:
    a, b = left.corners, right.corners
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(a == b) if union == 0 else width * height / union


def objects(before: Sequence[Box], after: Sequence[Box], config: CompareConfig) -> list[tuple[str, int, int]]:
    """(kind, position before, position after), objects of before first; -1 on the side an object is not on."""
    free_before, free_after = set(range(len(before))), set(range(len(after)))
    matches = {}
    for alike in (True, False):
        pairs = [
            (-iou(before[i], after[j]), i, j)
            for i in range(len(before))
            for j in range(len(after))
            if (before[i].category == after[j].category) is alike
        ]
        for minus, i, j in sorted(pairs):
            if -minus >= config.iou_threshold and i in free_before and j in free_after:
                matches[i] = j
                free_before.remove(i)
                free_after.remove(j)
    rows = [
        (kind(before[i], after[matches[i]], config), i, matches[i]) if i in matches else ("removed", i, -1)
        for i in range(len(before))
    ]
    return rows + [("added", -1, j) for j in sorted(free_after)]


def kind(old: Box, new: Box, config: CompareConfig) -> str:
    if old.category != new.category:
        return "reclassed"
    shift = max(abs(one - other) for one, other in zip(old.corners, new.corners, strict=True))
    if iou(old, new) < config.moved_iou or shift > config.moved_px:
        return "moved"
    return "rescored" if abs(old.score - new.score) > config.rescored_by else "unchanged"
