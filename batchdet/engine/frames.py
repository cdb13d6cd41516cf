"""Boxes between the frames they live in: the resized image and the original. Knows no model.

Shape shorthand: N boxes of a batch, B images. A frame is (height, width) in pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Frame = tuple[int, int]


def decode_boxes(coder: Any, codes: Tensor, references: Tensor) -> Tensor:
    """Boxes from codes relative to default boxes, anchors or proposals: torchvision's `BoxCoder.decode_single`.

    The same arithmetic in the same order, on two columns at a time.

    Args:
        coder: holds `weights` and `bbox_xform_clip`.
        codes: [N, 4] float32 (dx, dy, dw, dh).
        references: [N, 4] float32 xyxy.

    Returns:
        [N, 4] float32 xyxy.
    """
    size = references[:, 2:] - references[:, :2]
    center = references[:, :2] + 0.5 * size
    steps = codes / _numbers(coder.weights, codes.device)
    center = steps[:, :2] * size + center
    half = 0.5 * (steps[:, 2:].clamp(max=coder.bbox_xform_clip).exp() * size)
    return torch.cat([center - half, center + half], dim=1)


def clip_to_frames(boxes: Tensor, image_index: Tensor, frames: Sequence[Frame]) -> Tensor:
    """Clamp each box to the frame of its image, as `torchvision.ops.clip_boxes_to_image` does image by image.

    Args:
        boxes: [N, 4] float32 xyxy.
        image_index: [N] int64.
        frames: B frames.
    """
    limits = _numbers([(w, h, w, h) for h, w in frames], boxes.device).reshape(-1, 4)
    return torch.minimum(boxes.clamp(min=0), limits.index_select(0, image_index))


def rescale(boxes: Tensor, image_index: Tensor, sizes: Sequence[Frame], originals: Sequence[Frame]) -> Tensor:
    """Map boxes from each resized frame to its original one, with the float32 ratio of torchvision's `resize_boxes`.

    Args:
        boxes: [N, 4] float32 xyxy in the resized frames.
        image_index: [N] int64.
        sizes: B resized frames.
        originals: B original frames.

    Returns:
        [N, 4] float32, clipped to the original frames: the product may pass a border by a rounding.
    """
    resized, original = _numbers([sizes, originals], boxes.device).reshape(2, -1, 2).flip(2)
    ratio = (original / resized).repeat(1, 2)
    return clip_to_frames(boxes * ratio.index_select(0, image_index), image_index, originals)


def _numbers(values: Sequence[Any], device: torch.device) -> Tensor:
    """Constants as float32 on a device, without a wait for what it is doing."""
    return torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)
