"""Non-maximum suppression on any device in few launches and waits, the same for a batch of any size. Knows no model.

Boxes compete inside a segment: one group (a category, a pyramid level) of one image.
Shape shorthand: N entries of a batch, B images, P pairs of entries that may overlap enough.
"""

import torch
from torch import Tensor

from batchdet.engine.nms import ROUNDING, float32_bound, reach_of, shift_limit

CHUNK_PAIRS = 1 << 24
"""Pairs compared together: about 1 GiB of columns."""
STEPS = 6
"""Rounds of removal between two questions whether any is left: an answer costs more than a round."""


def batched_nms(boxes: Tensor, groups: Tensor, image_index: Tensor, bounds: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS inside every group of every image, as `torchvision.ops.batched_nms` decides it image by image.

    Args:
        boxes: [N, 4] float32 xyxy, not negative; N > 0.
        groups: [N] int64, not negative.
        image_index: [N] int64; entries are sorted by image, then from the highest score.
        bounds: [B + 1] int64, where the entries of every image begin, and N.
        iou_threshold: a box goes when its IoU with a kept one is above this.

    Returns:
        [N] bool, the kept.
    """
    # The shift `group * (largest coordinate + 1)` rounds, so the same overlap is found only in the same coordinates.
    step = boxes.new_zeros(bounds.shape[0] - 1).scatter_reduce_(0, image_index, boxes.amax(dim=1), "amax") + 1
    shifted = bounds[1:] - bounds[:-1] <= shift_limit(boxes.device.type)
    shift = (step * shifted).index_select(0, image_index) * groups
    return sweep_nms(boxes + shift[:, None], image_index * (groups.max() + 1) + groups, iou_threshold)


def sweep_nms(boxes: Tensor, segments: Tensor, iou_threshold: float) -> Tensor:
    """See `Steps.sweep_nms`. Along x only boxes whose left sides lie close can overlap enough, so pairs are few."""
    if boxes.shape[0] == 0:
        return torch.zeros(0, dtype=torch.bool, device=boxes.device)
    left, right = boxes[:, 0], boxes[:, 2]
    lanes = segments * (right.max() + 1).double() + left
    place, order = torch.sort(lanes)
    sides = boxes.index_select(0, order).t().contiguous()
    reach = torch.add(place, sides[2] - sides[0], alpha=reach_of(iou_threshold)) + ROUNDING
    reach = torch.searchsorted(place, reach, right=True)
    follow = torch.arange(1, order.shape[0] + 1, device=order.device)
    first, second = _overlapping(sides, reach, follow, iou_threshold)
    first, second = order.index_select(0, first), order.index_select(0, second)
    return _settle(torch.minimum(first, second), torch.maximum(first, second), order.shape[0])


def _overlapping(sides: Tensor, reach: Tensor, follow: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Pairs [P], [P] above the threshold of each box with those from its `follow` up to its `reach`."""
    ends = (reach - follow).cumsum(0)
    skip = reach - ends  # Pair number p of a box is the one with the box at p + skip.
    area = (sides[2] - sides[0]) * (sides[3] - sides[1])
    total, found = int(ends[-1]), []
    for start in range(0, total, CHUNK_PAIRS):
        pair = torch.arange(start, min(start + CHUNK_PAIRS, total), device=ends.device)
        first = torch.searchsorted(ends, pair, right=True)
        found.append(_compare(sides, area, first, pair + skip.index_select(0, first), iou_threshold))
    if len(found) < 2:
        return found[0] if found else (ends[:0], ends[:0])
    return torch.cat([first for first, _ in found]), torch.cat([second for _, second in found])


def _compare(sides: Tensor, area: Tensor, first: Tensor, second: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """The pairs whose IoU is above the threshold."""
    one, other = sides.index_select(1, first), sides.index_select(1, second)
    shared = torch.minimum(one[2:], other[2:]).sub_(torch.maximum(one[:2], other[:2])).clamp_(min=0)
    inter = shared[0] * shared[1]
    union = area.index_select(0, first) + area.index_select(0, second) - inter
    above = (inter / union > float32_bound(iou_threshold)).nonzero().squeeze(1)
    return first.index_select(0, above), second.index_select(0, above)


def _settle(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Entries left when each kept `first` removes its `second`: the fix-point of an acyclic graph, [count] bool."""
    ones = torch.ones(count, dtype=torch.int32, device=first.device)
    keep = before = ones
    while True:
        for _ in range(STEPS):
            before = keep
            keep = ones.index_add(0, second, before.index_select(0, first), alpha=-1).clamp_(min=0)
        if torch.equal(before, keep):
            return keep > 0
