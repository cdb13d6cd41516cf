"""SSD's losses: matched default boxes, hard negatives, smooth L1. Knows no optimiser and no files.

Liu et al., "SSD: Single Shot MultiBox Detector" (2016), section 2.2. With nothing ignored and all weights 1 the numbers
are those of torchvision's `SSD` in training mode.
Shape shorthand: R default boxes, C categories with the background, T objects and I ignored boxes of a picture.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, smooth_l1_loss
from torchvision.models.detection._utils import SSDMatcher

from batchdet.engine.anchors import reference_boxes
from batchdet.training.loss_config import LossConfig, SSDRules
from batchdet.training.targets import Target, make_inputs, match_references, on_ignored
from batchdet.training.terms import LossTerm, single


def ssd_terms(
    model: Any, pictures: Sequence[Tensor], targets: Sequence[Target], rules: LossConfig
) -> dict[str, LossTerm]:
    """The losses of a batch under torchvision's names, each a sum and the number of positive default boxes.

    Args:
        model: a torchvision SSD in training mode.
        pictures: uint8 [3, H, W] each, or float32 in [0, 1], on the model's device.
        targets: one per picture, on the same device.
        rules: matching, mining and ignoring.
    """
    inputs = make_inputs(model, pictures, targets)
    maps = list(model.backbone(inputs.batch.pixels).values())
    outputs = model.head(maps)
    default_boxes = reference_boxes(model.anchor_generator, inputs.batch.pixels, maps)
    box_sums, class_sums, positives = [], [], 0
    columns = zip(inputs.targets, single(outputs["bbox_regression"]), single(outputs["cls_logits"]), strict=True)
    for target, offsets, logits in columns:
        matched, used = assign(target, default_boxes, rules)
        box_sums.append(_box_loss(model, target, (offsets, default_boxes), matched, rules.ssd))
        class_sums.append(_class_loss(target, logits, matched, used, rules.ssd))
        positives += int((matched >= 0).sum())
    count = torch.tensor(positives, device=default_boxes.device)
    return {
        "bbox_regression": LossTerm(torch.stack(box_sums).sum(), count),
        "classification": LossTerm(torch.stack(class_sums).sum(), count),
    }


@torch.no_grad()
def assign(target: Target, default_boxes: Tensor, rules: LossConfig) -> tuple[Tensor, Tensor]:
    """What each default box learns.

    Args:
        target: in the frame of the default boxes.
        default_boxes: [R, 4].
        rules: IoU of a match, and what lies on an ignored box.

    Returns:
        [R] int64, the object of a positive default box, else a negative number; and [R] bool, whether it is in any
        loss. What lies on an ignored box is neither positive nor used.
    """
    matcher = SSDMatcher(rules.ssd.match_iou)
    matched = match_references(matcher, target.boxes, default_boxes)
    used = ~on_ignored(matcher, target.ignored, default_boxes, rules.ignore_overlap)
    return matched.where(used, matched.clamp(max=-1)), used


def _box_loss(model: Any, target: Target, outputs: tuple[Tensor, Tensor], matched: Tensor, rules: SSDRules) -> Tensor:
    """Weighted sum of smooth L1 over the positive default boxes of a picture; `outputs` are offsets and boxes."""
    positive = (matched >= 0).nonzero().squeeze(1)
    objects = matched[positive]
    offsets, default_boxes = (column[positive] for column in outputs)
    wanted = model.box_coder.encode_single(target.boxes[objects], default_boxes)
    losses = smooth_l1_loss(offsets, wanted, reduction="none", beta=rules.smooth_l1_beta)
    weights = target.weights[objects] * target.image_weight
    total: Tensor = (losses * weights[:, None]).sum()
    return total


def _class_loss(target: Target, logits: Tensor, matched: Tensor, used: Tensor, rules: SSDRules) -> Tensor:
    """Weighted sum of cross entropy over the positive default boxes and the hardest negatives of a picture."""
    positive = matched >= 0
    labels = torch.zeros_like(matched)
    labels[positive] = target.labels[matched[positive]]
    losses = cross_entropy(logits, labels, reduction="none")
    negative = hardest(losses, used & ~positive, _num_negatives(int(positive.sum()), rules))
    weights = target.weights[matched[positive]]
    total: Tensor = ((losses[positive] * weights).sum() + losses[negative].sum()) * target.image_weight
    return total


def _num_negatives(num_positives: int, rules: SSDRules) -> int:
    # torchvision keeps the places whose rank is under a number that need not be whole.
    return max(rules.min_negatives, math.ceil(rules.negatives_per_positive * num_positives))


@torch.no_grad()
def hardest(losses: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Hard negative mining: the `count` largest losses ([R]) among candidates ([R] bool), as positions [<= count]."""
    places = candidates.nonzero().squeeze(1)
    best = losses[places].topk(min(count, len(places))).indices
    return places[best]
