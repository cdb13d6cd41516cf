"""A picture and its boxes, changed together: torchvision v2's operations, drawn from a seed. Knows no model.

Thread-safe: all chance comes from the seed given, none from torch's shared generators.
Boxes are xyxy pixels of the picture; H×W its height and width.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou
from torchvision.transforms.v2 import functional as ops

from batchdet.training.targets import Target
from batchdet.training.view_config import ViewConfig

CROP_TRIES = 40
"""Windows tried for SSD's crop before the picture is left whole, as in torchvision."""
_ASPECTS = (0.5, 2.0)
_BLUR_REACH = 3.0

Window = tuple[int, int, int, int]
"""Left, top, width, height in pixels of the picture; may reach beyond it."""


@dataclass(frozen=True, slots=True)
class View:
    """A changed picture.

    Attributes:
        plain: uint8 [3, H, W], moved only: what a mean teacher sees.
        picture: uint8 [3, H, W], the same with changed colours: what the student sees.
        target: in their frame. The seed of the samplers is its own.
    """

    plain: Tensor
    picture: Tensor
    target: Target


def change(picture: Tensor, target: Target, rules: ViewConfig, min_side: float, seed: int) -> View:
    """Crop, zoom, mirror and recolour.

    An object stays where its centre stays in the picture, as SSD's crop has it; of others, what is still to be seen
    becomes an ignored box: it is neither a whole object nor background.

    Args:
        picture: uint8 [3, H, W].
        target: its boxes.
        rules: ranges and chances.
        min_side: pixels; a box with a shorter side is left out.
        seed: the same seed gives the same view.
    """
    rng = np.random.default_rng(seed)
    height, width = int(picture.shape[-2]), int(picture.shape[-1])
    window = _zoom_window(rng, (height, width), rules)
    picture, target = _cut(picture, target, window, min_side)
    if rng.random() < rules.iou_crop:
        window = _iou_window(rng, picture, target, rules)
        picture, target = _cut(picture, target, window, min_side)
    if rng.random() < rules.flip:
        picture, target = ops.horizontal_flip(picture), _mirrored(target, int(picture.shape[-1]))
    return View(picture, _recolour(rng, picture, rules), target)


def _zoom_window(rng: np.random.Generator, size: tuple[int, int], rules: ViewConfig) -> Window:
    """A window of the picture's shape that the model's resize turns into scale jitter."""
    low, high = np.log(rules.zoom)
    factor = float(np.exp(rng.uniform(low, high)))
    height, width = (max(1, round(side / factor)) for side in size)
    free_x, free_y = size[1] - width, size[0] - height
    return round(rng.random() * free_x), round(rng.random() * free_y), width, height


def _iou_window(rng: np.random.Generator, picture: Tensor, target: Target, rules: ViewConfig) -> Window:
    """SSD's random crop (Liu et al. 2016, section 2.2, Data augmentation); the whole picture where no try fits."""
    height, width = int(picture.shape[-2]), int(picture.shape[-1])
    overlap = float(rng.choice(rules.iou_crop_overlaps))
    for _ in range(CROP_TRIES if len(target.boxes) else 0):
        share_x, share_y = rng.uniform(*rules.iou_crop_scale, size=2)
        w, h = max(1, int(width * share_x)), max(1, int(height * share_y))
        window = (int((width - w) * rng.random()), int((height - h) * rng.random()), w, h)
        inside = target.boxes[_centres_inside(target.boxes, window)]
        frame = torch.tensor([[window[0], window[1], window[0] + w, window[1] + h]], dtype=torch.float32)
        if _ASPECTS[0] <= w / h <= _ASPECTS[1] and len(inside) and float(box_iou(inside, frame).amax()) >= overlap:
            return window
    return 0, 0, width, height


def _centres_inside(boxes: Tensor, window: Window) -> Tensor:
    left, top, width, height = window
    corner = torch.tensor([left, top], dtype=boxes.dtype)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 - corner
    return ((centres > 0) & (centres < torch.tensor([width, height]))).all(dim=1)


def _cut(picture: Tensor, target: Target, window: Window, min_side: float) -> tuple[Tensor, Target]:
    """The picture in the window, the mean colour where it has none, and the boxes left in it."""
    if window == (0, 0, int(picture.shape[-1]), int(picture.shape[-2])):
        return picture, target
    whole = _centres_inside(target.boxes, window)
    cut_off = target.boxes[~whole]
    boxes, labels, weights = target.boxes[whole], target.labels[whole], target.weights[whole]
    boxes, ignored = _moved(boxes, window), _moved(torch.cat([target.ignored, cut_off]), window)
    large, visible = _sides(boxes) >= min_side, (_sides(ignored) > 0) & (box_area(ignored) > 0)
    moved = replace(target, boxes=boxes[large], labels=labels[large], weights=weights[large], ignored=ignored[visible])
    return _window_pixels(picture, window), moved


def _moved(boxes: Tensor, window: Window) -> Tensor:
    left, top, width, height = window
    shifted = boxes - torch.tensor([left, top, left, top], dtype=boxes.dtype)
    limits = torch.tensor([width, height, width, height], dtype=boxes.dtype)
    return torch.minimum(shifted.clamp(min=0), limits)


def _sides(boxes: Tensor) -> Tensor:
    """[N], the shorter side."""
    return (boxes[:, 2:] - boxes[:, :2]).amin(dim=1)


def _window_pixels(picture: Tensor, window: Window) -> Tensor:
    left, top, width, height = window
    rows, columns = int(picture.shape[-2]), int(picture.shape[-1])
    margins = [max(0, -left), max(0, -top), max(0, left + width - columns), max(0, top + height - rows)]
    if any(margins):
        colour = picture.float().mean(dim=(1, 2)).round().tolist()
        picture = ops.pad(picture, margins, fill=colour)
    cut: Tensor = ops.crop(picture, max(0, top), max(0, left), height, width)
    return cut


def _mirrored(target: Target, width: int) -> Target:
    def mirror(boxes: Tensor) -> Tensor:
        return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)

    return replace(target, boxes=mirror(target.boxes), ignored=mirror(target.ignored))


def _recolour(rng: np.random.Generator, picture: Tensor, rules: ViewConfig) -> Tensor:
    """SSD's photometric distortion, and a blur; every change has the same chance."""
    changes: list[tuple[Any, float]] = [
        (ops.adjust_brightness, rules.brightness),
        (ops.adjust_contrast, rules.contrast),
        (ops.adjust_saturation, rules.saturation),
    ]
    for adjust, most in changes:
        factor = 1.0 + float(rng.uniform(-most, most))
        if rng.random() < rules.distort and most:
            picture = adjust(picture, factor)
    turn = float(rng.uniform(-rules.hue, rules.hue))
    if rng.random() < rules.distort and rules.hue:
        picture = ops.adjust_hue(picture, turn)
    sigma = float(rng.uniform(0.0, rules.blur)) * min(picture.shape[-2:])
    if rng.random() < rules.distort and sigma > 0:
        reach = 2 * max(1, int(np.ceil(_BLUR_REACH * sigma))) + 1
        largest = 2 * ((min(picture.shape[-2:]) - 1) // 2) + 1
        picture = ops.gaussian_blur(picture, [min(reach, largest)] * 2, [sigma] * 2)
    return picture
