"""What one picture teaches, and which reference boxes learn what from it. Knows no network and no loss.

Reference boxes are SSD's default boxes, the RPN's anchors or its proposals.
Shape shorthand: T objects and I ignored boxes of a picture, R reference boxes. Boxes are xyxy pixels of the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_area, box_iou

from batchdet.engine.detector import Batch
from batchdet.training.config import PseudoLabelConfig

UNMATCHED, BETWEEN = Matcher.BELOW_LOW_THRESHOLD, Matcher.BETWEEN_THRESHOLDS
"""What torchvision's matchers say of a reference box that is background, or neither that nor an object."""


@dataclass(frozen=True, slots=True)
class Target:
    """What one picture teaches.

    Attributes:
        boxes: [T, 4] float32, sides longer than 0.
        labels: [T] int64, positions in the categories; never 0.
        weights: [T] float32, factors of each object's losses.
        ignored: [I, 4] float32, neither object nor background.
        image_weight: factor of every loss of the picture.
        seed: of the samplers; None draws from torch's own generators.
    """

    boxes: Tensor
    labels: Tensor
    weights: Tensor
    ignored: Tensor
    image_weight: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        count = self.labels.shape[0]
        shapes = [tuple(column.shape) for column in (self.boxes, self.labels, self.weights, self.ignored)]
        if shapes != [(count, 4), (count,), (count,), (self.ignored.shape[0], 4)]:
            raise ValueError(f"expected boxes [T, 4], labels [T], weights [T], ignored [I, 4]; got {shapes}")

    def to(self, device: torch.device) -> "Target":
        """The same on a device."""
        return replace(
            self,
            boxes=self.boxes.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
            ignored=self.ignored.to(device, non_blocking=True),
        )


@dataclass(frozen=True, slots=True)
class Banded:
    """Detections of one picture in two score bands; the rest is rejected.

    Attributes:
        accepted, ignored: [D] bool, never both.
    """

    accepted: Tensor
    ignored: Tensor


def gold_target(boxes: Tensor, labels: Tensor, crowds: Tensor, seed: int | None = None) -> Target:
    """The target of a human-labelled picture.

    Args:
        boxes: [T, 4] float32.
        labels: [T] int64.
        crowds: [I, 4] float32, boxes around many objects.
        seed: see `Target`.
    """
    keep, crowds = _has_area(boxes), crowds[_has_area(crowds)]
    return Target(boxes[keep], labels[keep], torch.ones(int(keep.sum())), crowds, seed=seed)


def pseudo_target(
    boxes: Tensor, labels: Tensor, scores: Tensor, banded: Banded, rules: PseudoLabelConfig, seed: int | None = None
) -> Target:
    """The target of detections of one picture.

    Args:
        boxes: [D, 4] float32.
        labels: [D] int64.
        scores: [D] float32.
        banded: which are pseudo-labels, which are ignored.
        rules: how scores weigh, and which ignored boxes are settled by a pseudo-label.
        seed: see `Target`.
    """
    sound = _has_area(boxes)
    accepted, ignored = banded.accepted & sound, boxes[banded.ignored & sound]
    objects = boxes[accepted]
    if len(objects) and len(ignored):
        ignored = ignored[box_iou(ignored, objects).amax(dim=1) < rules.settle_overlap]
    weights = scores[accepted] if rules.weigh_by_score else torch.ones_like(scores[accepted])
    return Target(objects, labels[accepted], weights, ignored, seed=seed)


def _has_area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def match_references(matcher: Matcher, boxes: Tensor, references: Tensor) -> Tensor:
    """The object of every reference box.

    Args:
        matcher: torchvision's, with the IoU bands of its stage.
        boxes: [T, 4].
        references: [R, 4].

    Returns:
        [R] int64: a position in `boxes`, `UNMATCHED` or `BETWEEN`.
    """
    if not len(boxes) or not len(references):
        return torch.full((len(references),), UNMATCHED, dtype=torch.int64, device=references.device)
    matched: Tensor = matcher(box_iou(boxes, references))
    return matched


def on_ignored(matcher: Matcher, ignored: Tensor, references: Tensor, overlap: float) -> Tensor:
    """Which reference boxes must be in no loss, neither as object nor as background.

    Those that would not be background if the ignored boxes were objects, and those that lie on one: COCO measures
    crowds likewise, by the share of the other box's area.

    Args:
        matcher: torchvision's, with the IoU bands of its stage.
        ignored: [I, 4].
        references: [R, 4].
        overlap: share of a reference box's area from which it lies on an ignored one.

    Returns:
        [R] bool.
    """
    if not len(ignored) or not len(references):
        return torch.zeros(len(references), dtype=torch.bool, device=references.device)
    corner = torch.minimum(ignored[:, None, 2:], references[None, :, 2:])
    sides = (corner - torch.maximum(ignored[:, None, :2], references[None, :, :2])).clamp(min=0)
    shares: Tensor = (sides.prod(dim=2) / box_area(references)).amax(dim=0)
    # A matcher that gives every object its best boxes gives one that nothing touches all of them.
    would_match: Tensor = (match_references(matcher, ignored, references) != UNMATCHED) & (shares > 0)
    return (shares >= overlap) | would_match


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch as the network takes it, with its targets in the same frames.

    Attributes:
        batch: pixels resized, normalised and padded; `original_sizes` are those of the pictures given.
        targets: one per picture, in its resized frame.
    """

    batch: Batch
    targets: tuple[Target, ...]


def make_inputs(model: Any, pictures: Sequence[Tensor], targets: Sequence[Target]) -> Inputs:
    """Resize, normalise and pad with torchvision's own transform of the model; boxes follow.

    Args:
        model: a torchvision detector.
        pictures: uint8 [3, H, W] each, or float32 in [0, 1], on the model's device.
        targets: one per picture, on the same device.
    """
    floats = [picture.float() / 255 if picture.dtype == torch.uint8 else picture for picture in pictures]
    columns = [{"boxes": torch.cat([target.boxes, target.ignored])} for target in targets]
    images, resized = model.transform(floats, columns)
    originals = tuple((int(picture.shape[-2]), int(picture.shape[-1])) for picture in pictures)
    batch = Batch(images.tensors, tuple(images.image_sizes), originals)
    moved = []
    for target, column in zip(targets, resized, strict=True):
        boxes, ignored = column["boxes"].split([len(target.boxes), len(target.ignored)])
        moved.append(replace(target, boxes=boxes, ignored=ignored))
    return Inputs(batch, tuple(moved))
