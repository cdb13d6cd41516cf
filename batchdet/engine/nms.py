"""Non-maximum suppression for a whole batch at once, equal to torchvision's image by image. Knows no model, no policy.

Boxes compete inside a segment: one group (a category, a pyramid level) of one image.
Shape shorthand: N entries of a batch, B images, P pairs of entries that may overlap enough.
"""

import torch
import torchvision
from torch import Tensor

TRICK_LIMIT = {"cpu": 1_000, "cuda": 25_000}
"""Boxes of one image above which `torchvision.ops.batched_nms` stops shifting them by group, by device type."""
CHUNK_PAIRS = 1 << 18
"""Pairs compared together: their columns stay in a core's cache."""


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
    segments = image_index * (groups.max() + 1) + groups
    if boxes.device.type != "cpu":
        return sweep_nms(framed, segments, iou_threshold)
    # Few boxes: torchvision's kernel skips what is gone already, and one call an image costs less than pairs.
    keep = torch.zeros(boxes.shape[0], dtype=torch.bool)
    sizes = counts.tolist()
    for kept, box, score, small in zip(
        *(torch.split(column, sizes) for column in (keep, framed, scores)), shifted.tolist(), strict=True
    ):
        if small:
            kept[torchvision.ops.nms(box, score, iou_threshold)] = True
    crowded = ~shifted[image_index]
    if bool(crowded.any()):
        keep[crowded] = sweep_nms(framed[crowded], segments[crowded], iou_threshold)
    return keep


def _competing_frame(boxes: Tensor, groups: Tensor, image_index: Tensor, shifted: Tensor) -> Tensor:
    """The coordinates in which torchvision compares: groups of a `shifted` image lie apart, others as they are.

    The shift `group * (largest coordinate + 1)` rounds, so the same overlap is found only in the same coordinates.
    """
    step = torch.zeros(shifted.shape[0], dtype=boxes.dtype, device=boxes.device)
    step.scatter_reduce_(0, image_index, boxes.amax(dim=1), "amax")
    step = torch.where(shifted, step + 1, 0)
    return boxes + (groups.to(boxes.dtype) * step[image_index])[:, None]


def sweep_nms(boxes: Tensor, segments: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS inside every segment with the arithmetic of `torchvision.ops.nms`, without a loop over segments.

    Along x only boxes whose left sides lie close can overlap enough, so few pairs are compared.

    Args:
        boxes: [N, 4] float32 xyxy.
        segments: [N] int64, in any order; earlier entries suppress later ones.
        iou_threshold: a box goes when its IoU with a kept one is above this.

    Returns:
        [N] bool, the kept.
    """
    left, width = boxes[:, 0].double(), (boxes[:, 2] - boxes[:, 0]).double()
    lane = segments * (boxes[:, 2].max() - boxes[:, 0].min() + 1).double()
    key, order = torch.sort(lane + left)
    # IoU <= overlap in x / width, so a partner starts before (1 - threshold) of the width; 1e-3 covers rounding.
    reach = torch.searchsorted(key, key + (1 - iou_threshold) * width[order] + 1e-3, right=True)
    first, second = _overlapping(boxes[order], reach, iou_threshold)
    first, second = order[first], order[second]
    return _settle(torch.minimum(first, second), torch.maximum(first, second), boxes.shape[0])


def _overlapping(boxes: Tensor, reach: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Pairs [P], [P] with an IoU above the threshold among each entry and those after it, up to its reach."""
    later = reach - torch.arange(1, reach.shape[0] + 1, device=reach.device)
    ends = torch.cumsum(later, 0)
    total = int(ends[-1])
    marks = torch.arange(CHUNK_PAIRS, total + CHUNK_PAIRS, CHUNK_PAIRS, device=reach.device)
    cuts = torch.unique((torch.searchsorted(ends, marks) + 1).clamp_(max=reach.shape[0])).tolist()
    columns = _columns(boxes)
    found = [_compare(columns, later, range(lo, hi), iou_threshold) for lo, hi in zip([0, *cuts], cuts, strict=False)]
    if not found:
        return later[:0], later[:0]
    return torch.cat([first for first, _ in found]), torch.cat([second for _, second in found])


def _columns(boxes: Tensor) -> tuple[Tensor, ...]:
    """x1, y1, x2, y2 and area, each [N] contiguous."""
    x1, y1, x2, y2 = boxes.t().contiguous()
    return x1, y1, x2, y2, (x2 - x1) * (y2 - y1)


def _compare(columns: tuple[Tensor, ...], later: Tensor, rows: range, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Pairs above the threshold whose first entry is in `rows`; each is paired with the `later` entries after it."""
    x1, y1, x2, y2, area = columns
    counts = later[rows.start : rows.stop]
    places = torch.arange(rows.start, rows.stop, device=later.device)
    first = torch.repeat_interleave(places, counts)
    skipped = torch.cumsum(counts, 0) - counts - places - 1
    second = torch.arange(first.shape[0], device=later.device) - skipped[first - rows.start]

    high = torch.minimum(y2[first], y2[second]).sub_(torch.maximum(y1[first], y1[second]))
    likely = (high > (y2 - y1)[first] * (iou_threshold * (1 - 1e-5))).nonzero().squeeze(1)
    first, second, high = first[likely], second[likely], high[likely].clamp_(min=0)
    wide = torch.minimum(x2[first], x2[second]).sub_(torch.maximum(x1[first], x1[second])).clamp_(min=0)
    inter = wide * high
    # torchvision compares a float32 IoU with a double threshold.
    above = (inter / (area[first] + area[second] - inter)).double() > iou_threshold
    return first[above], second[above]


def _settle(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Entries left when each kept `first` removes its `second`: the fix-point of an acyclic graph, [count] bool."""
    keep = torch.ones(count, dtype=torch.bool, device=first.device)
    while True:
        removed = torch.zeros(count, dtype=torch.int64, device=first.device)
        removed.index_add_(0, second, keep[first].to(torch.int64))
        settled = removed == 0
        if torch.equal(settled, keep):
            return keep
        keep = settled
