"""Non-maximum suppression on the host: numpy where boxes are many, torchvision's kernel where few. Knows no model.

torch is imported where its kernel is called: who judges stored boxes hardly ever needs it.

Boxes compete inside a segment: one group (a category, a pyramid level) of one image.
Shape shorthand: N entries of a batch, B images, P pairs of entries that may overlap enough.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from batchdet.engine.nms import ROUNDING, float32_bound, reach_of, shift_limit

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FEW = 300
"""Boxes of an image up to which torchvision's kernel, which compares every kept box with all others, costs less."""
CROWDED, COMMON = 24, 1 / 8
"""Partners of a box on average, and share of pairs that do overlap too much, from which the kernel costs less again."""
FEW_PAIRS = 1 << 14
"""Pairs up to which all are compared, without a look first at how they lie along y."""
CHUNK_PAIRS = 1 << 16
"""Pairs compared together: their columns stay in a core's cache."""


def batched_nms(
    sides: Floats, scores: Floats, groups: Ints, image_index: Ints, counts: Ints, iou_threshold: float
) -> Mask:
    """Greedy NMS inside every group of every image, as `torchvision.ops.batched_nms` decides it image by image.

    Args:
        sides: [4, N], the boxes' x1, y1, x2, y2, not negative.
        scores: [N].
        groups: [N], not negative.
        image_index: [N]; entries are sorted by image, then from the highest score.
        counts: [B] entries of every image.
        iou_threshold: a box goes when its IoU with a kept one is above this.

    Returns:
        [N] bool, the kept.
    """
    torch = _torch()
    framed = _competing_frame(sides, groups, image_index, counts)
    keep = np.ones(sides.shape[1], dtype=np.bool_)
    many = counts > FEW
    start = 0
    for size in counts.tolist():
        if 1 < size <= FEW:
            part = slice(start, start + size)
            kept = torch.ops.torchvision.nms(
                torch.from_numpy(framed[:, part].T), torch.from_numpy(scores[part]), iou_threshold
            )
            keep[part] = False
            keep[start + kept.numpy()] = True
        start += size
    if many.any():
        crowded = slice(None) if many.all() else many[image_index]
        segments = image_index[crowded] * (int(groups.max()) + 1) + groups[crowded]
        keep[crowded] = _sweep(framed[:, crowded], segments, iou_threshold)
    return keep


def _torch() -> Any:
    """Torch with torchvision's kernels."""
    import torch
    import torchvision  # noqa: F401  # registers them

    return torch


def _competing_frame(sides: Floats, groups: Ints, image_index: Ints, counts: Ints) -> Floats:
    """The coordinates in which torchvision compares: groups of an image lie apart, those of a large one as they are.

    The shift `group * (largest coordinate + 1)` rounds, so the same overlap is found only in the same coordinates.
    """
    filled = counts.nonzero()[0]
    starts = (counts.cumsum() - counts)[filled]
    step = np.zeros(counts.shape[0], dtype=np.float32)
    step[filled] = np.maximum.reduceat(np.maximum(sides[2], sides[3]), starts) + np.float32(1)
    step[counts > shift_limit("cpu")] = 0
    return sides + groups.astype(np.float32) * step[image_index]


def sweep_nms(boxes: Floats, segments: Ints, iou_threshold: float) -> Mask:
    """Greedy NMS inside every segment with the arithmetic of `torchvision.ops.nms`.

    Along x only boxes whose left sides lie close can overlap enough, so few pairs are compared, of all segments at
    once. Where boxes crowd even so, torchvision's kernel, which skips what is gone already, takes each segment.

    Args:
        boxes: [N, 4] xyxy, N > 0.
        segments: [N], in any order; earlier entries suppress later ones.
        iou_threshold: a box goes when its IoU with a kept one is above this.

    Returns:
        [N] bool, the kept.
    """
    return _sweep(np.ascontiguousarray(boxes.T), segments, iou_threshold)


def _sweep(sides: Floats, segments: Ints, iou_threshold: float) -> Mask:
    line = _lay_out(sides, segments, iou_threshold)
    ends = line.partners.cumsum()
    pairs = int(ends[-1])
    if pairs <= FEW_PAIRS:
        first, second = _compare(line, *_pairs(line, 0, ends.shape[0]), iou_threshold)
        return _settle(first, second, ends.shape[0])
    marks = np.arange(CHUNK_PAIRS, pairs + CHUNK_PAIRS, CHUNK_PAIRS)
    cuts = np.unique(np.minimum(np.searchsorted(ends, marks) + 1, ends.shape[0])).tolist()
    found = []
    for start, stop in pairwise([0, *cuts]):
        found.append(_compare(line, *_near_pairs(line, start, stop, iou_threshold), iou_threshold))
        if pairs > CROWDED * ends.shape[0] and found[-1][0].shape[0] > COMMON * CHUNK_PAIRS:
            return _segment_by_segment(sides, segments, iou_threshold)
    first, second = (np.concatenate(column) for column in zip(*found, strict=True))
    return _settle(first, second, ends.shape[0])


def _segment_by_segment(sides: Floats, segments: Ints, iou_threshold: float) -> Mask:
    torch = _torch()
    # One key holds the segment and the place in it, so that sorting needs not keep the order of equals.
    order = np.sort((segments << 32) + np.arange(segments.shape[0])) & 0xFFFFFFFF
    cuts = np.flatnonzero(np.diff(segments.take(order))) + 1
    parts = np.diff(np.concatenate([[0], cuts, [order.shape[0]]])).tolist()
    falling = torch.arange(order.shape[0], 0, -1, dtype=torch.float32)
    keep = np.zeros(order.shape[0], dtype=np.bool_)
    start = 0
    for part in torch.split(torch.from_numpy(sides.take(order, axis=1).T), parts):
        kept = torch.ops.torchvision.nms(part, falling[: part.shape[0]], iou_threshold)
        keep[order[start + kept.numpy()]] = True
        start += part.shape[0]
    return keep


@dataclass(frozen=True, slots=True)
class _Line:
    """Boxes in the order of their left sides, each segment in a lane of its own.

    Attributes:
        sides: x1, y1, x2, y2, each [N].
        partners: [N], how many of those that follow a box start close enough to overlap it too much.
        order: [N], where they stood.
    """

    sides: tuple[Floats, ...]
    partners: Ints
    order: Ints


def _lay_out(sides: Floats, segments: Ints, iou_threshold: float) -> _Line:
    place = segments * (float(sides[2].max()) + 1)
    place += sides[0]
    order = place.argsort()
    place = place.take(order)
    x1, y1, x2, y2 = (side.take(order) for side in sides)
    reach = place.searchsorted(place + (reach_of(iou_threshold) * (x2 - x1) + ROUNDING), side="right")
    return _Line((x1, y1, x2, y2), reach - np.arange(1, reach.shape[0] + 1), order)


def _pairs(line: _Line, start: int, stop: int) -> tuple[Ints, Ints]:
    """The boxes from `start` to `stop` with their partners, [P] and [P]."""
    partners = line.partners[start:stop]
    first = np.repeat(np.arange(start, stop), partners)
    # Partners follow their box; pairs of earlier boxes are counted away.
    skipped = np.arange(start + 1, stop + 1) - (partners.cumsum() - partners)
    second = np.arange(first.shape[0])
    second += np.repeat(skipped, partners)
    return first, second


def _near_pairs(line: _Line, start: int, stop: int, iou_threshold: float) -> tuple[Ints, Ints]:
    """Those that lie close enough along y too: a partner may begin higher, or end lower, but is hardly shorter."""
    first, second = _pairs(line, start, stop)
    _, top, _, bottom = line.sides
    partners = line.partners[start:stop]
    slack = np.float32(reach_of(iou_threshold)) * (bottom[start:stop] - top[start:stop]) + np.float32(ROUNDING)
    near = top.take(second) <= np.repeat(top[start:stop] + slack, partners)
    near &= bottom.take(second) >= np.repeat(bottom[start:stop] - slack, partners)
    likely = near.nonzero()[0]
    return first.take(likely), second.take(likely)


def _compare(line: _Line, first: Ints, second: Ints, iou_threshold: float) -> tuple[Ints, Ints]:
    """The pairs whose IoU is above the threshold, as where the earlier and the later entry stood."""
    x1, y1, x2, y2 = (side.take(first) for side in line.sides)
    u1, v1, u2, v2 = (side.take(second) for side in line.sides)
    areas = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1)
    inter = np.minimum(x2, u2, out=x2)
    inter -= np.maximum(x1, u1, out=x1)
    np.maximum(inter, 0, out=inter)
    high = np.minimum(y2, v2, out=y2)
    high -= np.maximum(y1, v1, out=y1)
    inter *= np.maximum(high, 0, out=high)
    areas -= inter
    with np.errstate(invalid="ignore"):  # Two boxes without area: 0 / 0, and NaN is above nothing.
        inter /= areas
        above = (inter > np.float32(float32_bound(iou_threshold))).nonzero()[0]
    first, second = line.order.take(first.take(above)), line.order.take(second.take(above))
    return np.minimum(first, second), np.maximum(first, second)


def _settle(first: Ints, second: Ints, count: int) -> Mask:
    """Entries left when each kept `first` removes its `second`: the fix-point of an acyclic graph, [count] bool."""
    keep = np.ones(count, dtype=np.bool_)
    while True:
        settled = np.ones(count, dtype=np.bool_)
        settled[second[keep.take(first)]] = False
        if np.array_equal(settled, keep):
            return keep
        keep = settled
