"""The boxes that codes are relative to: SSD's default boxes, the RPN's anchors. Knows no family and no outputs."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

CACHED_SHAPES = 16
"""Sets of boxes kept: one of an 800 x 1333 picture takes 4 MB."""


def reference_boxes(generator: Any, pixels: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Boxes of every cell of the feature maps, the same for all images of a batch and in every precision.

    torchvision's generators compute in the type of the maps, and float16 and bfloat16 place boxes whole pixels off:
    they are given float32 stand-ins of the same shapes.

    Args:
        generator: torchvision's `DefaultBoxGenerator` or `AnchorGenerator`.
        pixels: [B, 3, H, W], whose shape alone counts.
        maps: [B, D, H, W] each, of any type; their shapes and device count.

    Returns:
        [A, 4] float32 xyxy pixels of the padded frame, shared with later calls: not to be changed.
    """
    height, width = pixels.shape[-2:]
    cells = tuple((int(level.shape[-2]), int(level.shape[-1])) for level in maps)
    return _generate(generator, (height, width), cells, maps[0].device)


@lru_cache(CACHED_SHAPES)
def _generate(
    generator: Any, frame: tuple[int, int], cells: tuple[tuple[int, int], ...], device: torch.device
) -> Tensor:
    number = torch.zeros((), dtype=torch.float32, device=device)
    picture = ImageList(number.expand(1, 3, *frame), [frame])
    boxes: Tensor
    (boxes,) = generator(picture, [number.expand(1, 1, *level) for level in cells])
    return boxes
