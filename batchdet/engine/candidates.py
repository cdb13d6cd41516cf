"""Candidates of a batch on their way from head outputs to detections, as columns of tensors. Knows no model.

Shape shorthand: N candidates of a batch, B images, T anchors kept per image before NMS, over all levels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOGIT_MARGIN = 1e-4
"""Slack of a filter on logits: float32 softmax and sigmoid differ by less."""


def logit_bound(score_thresh: float) -> float:
    """How far a category's logit must lie above the background's for its softmax to pass a threshold in (0, 1)."""
    return math.log(score_thresh / (1 - score_thresh)) - LOGIT_MARGIN


@dataclass(frozen=True, slots=True)
class Candidates:
    """Boxes that compete, indexed together.

    Attributes:
        boxes: [N, 4] float32 xyxy, not negative.
        scores: [N] float32, not negative.
        labels: [N] int64, not negative: categories, or pyramid levels.
        image_index: [N] int64 in [0, B), under 2**31, non-decreasing.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    image_index: Tensor

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    def select(self, places: Tensor) -> "Candidates":
        """Those at int64 positions."""
        return self.mapped(lambda column: column.index_select(0, places))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Candidates":
        """The same with every column changed."""
        return Candidates(change(self.boxes), change(self.scores), change(self.labels), change(self.image_index))


@dataclass(frozen=True, slots=True)
class TopAnchors:
    """The most object-like anchors of every image, level after level, each from the best.

    Attributes:
        anchors: [B, T] int64, positions among the anchors of all levels: (level, row, column, kind) flattened.
        objectness: [B, T] logits.
        codes: [B, T, 4] box codes.
        levels: T of every level, in turn.
    """

    anchors: Tensor
    objectness: Tensor
    codes: Tensor
    levels: tuple[int, ...]


def any_per_image(flags: Tensor, image_index: Tensor, num_images: int) -> Tensor:
    """Whether an image has a raised flag: bool [N] flags at int64 [N] images to bool [B]."""
    counts = torch.zeros(num_images, dtype=torch.int64, device=flags.device)
    return counts.index_add_(0, image_index, flags.to(torch.int64)) > 0
