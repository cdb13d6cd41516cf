"""Non-maximum suppression inside segments, for a whole batch at once. Knows no model and no policy.

A segment is a group of boxes that compete: one category of one image, or one pyramid level of one image.
Shape shorthand: N entries of a batch, B images, P pairs of entries.
"""

import torch
from torch import Tensor

TRICK_LIMIT = {"cpu": 4_000}
"""Numbers in an image's boxes above which `torchvision.ops.batched_nms` stops shifting them, by device type."""
TRICK_LIMIT_ELSEWHERE = 100_000


def order_by_segment(segments: Tensor, scores: Tensor) -> Tensor:
    """Positions that sort entries by segment, then from the highest score; equal scores keep their order.

    Args:
        segments: [N] int64, not negative, under 2**31.
        scores: [N] float32, not negative.

    Returns:
        [N] int64.
    """
    # The bit pattern of a float that is not negative grows with it, so one integer key holds both.
    key = (segments << 32) - scores.view(torch.int32)
    return torch.argsort(key, stable=True)


def rank_in_segment(segments: Tensor) -> Tensor:
    """Place of every entry inside its segment, from 0; entries of a segment lie together in ascending order.

    Args:
        segments: [N] int64, non-decreasing.

    Returns:
        [N] int64.
    """
    places = torch.arange(segments.shape[0], device=segments.device)
    return places - torch.searchsorted(segments, segments)


def any_per_image(flags: Tensor, image_index: Tensor, num_images: int) -> Tensor:
    """Whether an image has a raised flag: bool [N] flags at int64 [N] images to bool [B]."""
    counts = torch.zeros(num_images, dtype=torch.int64, device=flags.device)
    return counts.index_add_(0, image_index, flags.to(torch.int64)) > 0


def competing_frame(boxes: Tensor, labels: Tensor, image_index: Tensor, num_images: int) -> Tensor:
    """The coordinates in which `torchvision.ops.batched_nms` would compare these boxes, image by image.

    It shifts boxes by `label * (largest coordinate + 1)` while an image has few, and leaves them alone above
    that; the shift rounds, so the same overlap is found only in the same coordinates.

    Args:
        boxes: [N, 4] float32 xyxy, not negative.
        labels: [N] int64, the group inside the image.
        image_index: [N] int64.
        num_images: B.

    Returns:
        [N, 4] float32.
    """
    limit = TRICK_LIMIT.get(boxes.device.type, TRICK_LIMIT_ELSEWHERE)
    counts = torch.zeros(num_images, dtype=torch.int64, device=boxes.device)
    counts.index_add_(0, image_index, torch.ones_like(image_index))
    step = torch.zeros(num_images, dtype=boxes.dtype, device=boxes.device)
    step.scatter_reduce_(0, image_index, boxes.amax(dim=1), "amax")
    step = torch.where(4 * counts <= limit, step + 1, 0)
    return boxes + (labels.to(boxes.dtype) * step[image_index])[:, None]


def segment_nms(boxes: Tensor, segments: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS inside every segment; the arithmetic of `torchvision.ops.nms`, without a loop over segments.

    Args:
        boxes: [N, 4] float32 xyxy.
        segments: [N] int64, non-decreasing; inside a segment earlier entries suppress later ones.
        iou_threshold: a box goes when its IoU with a kept one is above this.

    Returns:
        [N] bool, the kept.
    """
    first, second = _pairs(segments)
    above = _iou(boxes, first, second).to(torch.float64) > iou_threshold
    return _settle(first[above], second[above], boxes.shape[0])


def _pairs(segments: Tensor) -> tuple[Tensor, Tensor]:
    """Every (earlier, later) pair of entries that share a segment: [P] and [P] int64."""
    places = torch.arange(segments.shape[0], device=segments.device)
    later = torch.searchsorted(segments, segments, right=True) - places - 1
    first = torch.repeat_interleave(places, later)
    offset = torch.cumsum(later, 0) - later
    second = torch.arange(first.shape[0], device=segments.device) - (offset - places - 1)[first]
    return first, second


def _iou(boxes: Tensor, first: Tensor, second: Tensor) -> Tensor:
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    one, other = boxes[first], boxes[second]
    sides = (torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])).clamp_(min=0)
    inter = sides[:, 0] * sides[:, 1]
    return inter / (area[first] + area[second] - inter)


def _settle(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Entries left when each kept `first` removes its `second`: the fix-point of an acyclic graph."""
    keep = torch.ones(count, dtype=torch.bool, device=first.device)
    while True:
        removed = torch.zeros(count, dtype=torch.int64, device=first.device)
        removed.index_add_(0, second, keep[first].to(torch.int64))
        settled = removed == 0
        if torch.equal(settled, keep):
            return keep
        keep = settled
