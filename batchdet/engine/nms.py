"""Non-maximum suppression for a whole batch at once, equal to torchvision's image by image. Knows no model, no policy.

Boxes compete inside a segment: one group (a category, a pyramid level) of one image.
Shape shorthand: N entries of a batch, B images, P pairs of entries that may overlap enough.
"""

from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor

from batchdet.engine.candidates import rank_in_segment

TRICK_LIMIT = {"cpu": 1_000, "cuda": 25_000}
"""Boxes of one image above which `torchvision.ops.batched_nms` stops shifting them by group, by device type."""
CHUNK_PAIRS = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Pairs compared together, by device type: on a CPU their columns stay in a core's cache."""
FIRST_ROUND, GROWTH = {"cpu": 32, "cuda": 1024}, 8
"""Entries of a segment settled in the first round of a sweep, and how much larger each next round is.

Small rounds compare fewer pairs; on a GPU each costs more in waiting than the pairs it spares.
"""
LENIENT, ROUNDING = 1 - 1e-5, 1e-3
"""Factor of a threshold and pixels of a place that cover float32 rounding where pairs are only ruled out."""


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, image_index: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS inside every group of every image, as `torchvision.ops.batched_nms` decides it image by image.

    Args:
        boxes: [N, 4] float32 xyxy, not negative.
        scores: [N] float32.
        groups: [N] int64, not negative.
        image_index: [N] int64; entries are sorted by image, then from the highest score (`best_first`).
        iou_threshold: a box goes when its IoU with a kept one is above this.

    Returns:
        [N] bool, the kept.
    """
    if boxes.shape[0] == 0:
        return torch.zeros(0, dtype=torch.bool, device=boxes.device)
    counts = torch.bincount(image_index)
    shifted = counts <= TRICK_LIMIT[boxes.device.type]
    framed = _competing_frame(boxes, groups, image_index, shifted)
    if boxes.device.type != "cpu":
        return sweep_nms(framed, image_index * (groups.max() + 1) + groups, iou_threshold)
    # Few boxes: torchvision's kernel skips what is gone already, and one call an image costs less than pairs.
    kept, start, sparse = [], 0, shifted.tolist()
    for size, few in zip(counts.tolist(), sparse, strict=True):
        if few and size > 0:
            part = slice(start, start + size)
            kept.append(torchvision.ops.nms(framed[part], scores[part], iou_threshold).add_(start))
        start += size
    if not all(sparse):
        crowded = (~shifted).index_select(0, image_index).nonzero().squeeze(1)
        image, group = image_index.index_select(0, crowded), groups.index_select(0, crowded)
        left = sweep_nms(framed.index_select(0, crowded), image * (groups.max() + 1) + group, iou_threshold)
        kept.append(crowded[left])
    return torch.zeros_like(image_index, dtype=torch.bool).index_fill_(0, torch.cat(kept), True)


def _competing_frame(boxes: Tensor, groups: Tensor, image_index: Tensor, shifted: Tensor) -> Tensor:
    """The coordinates in which torchvision compares: groups of a `shifted` image lie apart, others as they are.

    The shift `group * (largest coordinate + 1)` rounds, so the same overlap is found only in the same coordinates.
    """
    step = torch.zeros(shifted.shape[0], dtype=boxes.dtype, device=boxes.device)
    step.scatter_reduce_(0, image_index, boxes.amax(dim=1), "amax")
    step = torch.where(shifted, step + 1, 0)
    return boxes + (groups.to(boxes.dtype) * step.index_select(0, image_index))[:, None]


def sweep_nms(boxes: Tensor, segments: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS inside every segment with the arithmetic of `torchvision.ops.nms`, without a loop over segments.

    The first entries of all segments are settled together and take away what they overlap, then the next of what is
    left. Along x only boxes whose left sides lie close can overlap enough, so few pairs are compared.

    Args:
        boxes: [N, 4] float32 xyxy.
        segments: [N] int64, in any order; earlier entries suppress later ones.
        iou_threshold: a box goes when its IoU with a kept one is above this.

    Returns:
        [N] bool, the kept.
    """
    keep = torch.zeros(boxes.shape[0], dtype=torch.bool, device=boxes.device)
    lanes = _lay_out(boxes, segments)
    waiting, size = torch.arange(boxes.shape[0], device=boxes.device), FIRST_ROUND[boxes.device.type]
    while waiting.shape[0] > 0:
        head, rest = _split(waiting, segments, size)
        kept = head[_settle_together(lanes.select(head), iou_threshold)]
        keep[kept] = True
        if rest.shape[0] > 0:
            rest = rest[_untouched(lanes.select(kept), lanes.select(rest), iou_threshold)]
        waiting, size = rest, size * GROWTH
    return keep


def _split(waiting: Tensor, segments: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The first `size` waiting entries of every segment, and the others."""
    if waiting.shape[0] <= size:
        return waiting, waiting[:0]
    leading = rank_in_segment(segments.index_select(0, waiting)) < size
    return waiting[leading], waiting[~leading]


@dataclass(frozen=True, slots=True)
class _Lanes:
    """Boxes laid out along one line, each segment in a lane of its own.

    Attributes:
        sides: x1, y1, x2, y2 and area, each [N] float32.
        place: [N] float64, of the left side on the line.
        start: [N] float64, where the lane begins.
    """

    sides: tuple[Tensor, ...]
    place: Tensor
    start: Tensor

    def select(self, index: Tensor) -> "_Lanes":
        """Those at int64 positions."""
        sides = tuple(side.index_select(0, index) for side in self.sides)
        return _Lanes(sides, self.place.index_select(0, index), self.start.index_select(0, index))

    @property
    def width(self) -> Tensor:
        """[N] float64."""
        return (self.sides[2] - self.sides[0]).double()


def _lay_out(boxes: Tensor, segments: Tensor) -> _Lanes:
    x1, y1, x2, y2 = boxes.t().contiguous()
    least = x1.min().double()
    start = segments * (x2.max().double() - least + 1)
    return _Lanes((x1, y1, x2, y2, (x2 - x1) * (y2 - y1)), start + (x1 - least), start)


def _settle_together(lanes: _Lanes, iou_threshold: float) -> Tensor:
    """Positions kept when earlier boxes of a lane suppress later ones."""
    _, order = torch.sort(lanes.place)
    line = lanes.select(order)
    # IoU <= overlap in x / width, so a partner starts within (1 - threshold) of the width.
    slack = 1 - iou_threshold * LENIENT
    reach = torch.searchsorted(line.place, line.place + slack * line.width + ROUNDING, right=True)
    after = torch.arange(1, reach.shape[0] + 1, device=reach.device)
    first, second = _overlapping(line, line, after, reach, iou_threshold)
    first, second = order.index_select(0, first), order.index_select(0, second)
    keep = _settle(torch.minimum(first, second), torch.maximum(first, second), reach.shape[0])
    return keep.nonzero().squeeze(1)


def _untouched(kept: _Lanes, rest: _Lanes, iou_threshold: float) -> Tensor:
    """Positions of the rest, ascending, that overlap no kept box of their lane too much."""
    _, order = torch.sort(rest.place)
    line = rest.select(order)
    # The widths of two boxes differ by a factor of 1 / threshold at most.
    slack = 1 - iou_threshold * LENIENT
    before = slack / max(iou_threshold * LENIENT, 1e-9) * kept.width
    low = torch.searchsorted(line.place, torch.maximum(kept.place - before, kept.start) - ROUNDING)
    reach = kept.place + slack * kept.width + ROUNDING
    high = torch.searchsorted(line.place, reach, right=True)
    _, touched = _overlapping(kept, line, low, high, iou_threshold)
    free = torch.ones(order.shape[0], dtype=torch.bool, device=order.device)
    free[order.index_select(0, touched)] = False
    return free.nonzero().squeeze(1)


def _overlapping(one: _Lanes, other: _Lanes, low: Tensor, high: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Pairs [P], [P] above the threshold of each box of `one` with the `other` from its `low` up to its `high`."""
    counts = (high - low).clamp_(min=0)
    ends = torch.cumsum(counts, 0)
    total = int(ends[-1]) if ends.shape[0] else 0
    chunk = CHUNK_PAIRS[ends.device.type]
    marks = torch.arange(chunk, total + chunk, chunk, device=ends.device)
    cuts = torch.unique((torch.searchsorted(ends, marks) + 1).clamp_(max=ends.shape[0])).tolist()
    found = []
    for start, stop in zip([0, *cuts], cuts, strict=False):
        rows, count = torch.arange(start, stop, device=ends.device), counts[start:stop]
        first = torch.repeat_interleave(rows, count)
        skipped = torch.cumsum(count, 0) - count - low[start:stop]
        second = torch.arange(first.shape[0], device=ends.device) - torch.repeat_interleave(skipped, count)
        found.append(_compare(one.sides, other.sides, first, second, iou_threshold))
    if not found:
        return counts[:0], counts[:0]
    return torch.cat([first for first, _ in found]), torch.cat([second for _, second in found])


def _compare(
    one: tuple[Tensor, ...], other: tuple[Tensor, ...], first: Tensor, second: Tensor, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """The pairs whose IoU is above the threshold; most fall at the cheaper question whether they overlap in y."""
    (x1, y1, x2, y2, area), (u1, v1, u2, v2, other_area) = one, other
    high = _overlap(y1, y2, first, v1, v2, second)
    needed = ((y2 - y1) * (iou_threshold * LENIENT)).index_select(0, first)
    likely = (high > needed).nonzero().squeeze(1)
    first, second, high = (column.index_select(0, likely) for column in (first, second, high))
    inter = _overlap(x1, x2, first, u1, u2, second).clamp_(min=0) * high.clamp_(min=0)
    union = area.index_select(0, first) + other_area.index_select(0, second) - inter
    # torchvision compares a float32 IoU with a double threshold.
    above = ((inter / union).double() > iou_threshold).nonzero().squeeze(1)
    return first.index_select(0, above), second.index_select(0, above)


def _overlap(low: Tensor, high: Tensor, first: Tensor, other_low: Tensor, other_high: Tensor, second: Tensor) -> Tensor:
    """Length along one axis that two boxes share; negative where they are apart."""
    end = torch.minimum(high.index_select(0, first), other_high.index_select(0, second))
    return end.sub_(torch.maximum(low.index_select(0, first), other_low.index_select(0, second)))


def _settle(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Entries left when each kept `first` removes its `second`: the fix-point of an acyclic graph, [count] bool."""
    keep = torch.ones(count, dtype=torch.bool, device=first.device)
    while True:
        removed = torch.zeros(count, dtype=torch.int64, device=first.device)
        removed.index_add_(0, second, keep.index_select(0, first).to(torch.int64))
        settled = removed == 0
        if torch.equal(settled, keep):
            return keep
        keep = settled
