"""Faster R-CNN's losses: sampled anchors and sampled proposals. Knows no optimiser and no files.

Ren et al., "Faster R-CNN" (2015), section 3.1.2; Girshick, "Fast R-CNN" (2015), section 2.3. With nothing ignored and
all weights 1 the numbers are those of torchvision's `RegionProposalNetwork` and `RoIHeads` in training mode.
Shape shorthand: B pictures, R reference boxes of a picture (anchors or proposals), S of them sampled, C categories with
the background, T objects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.models.detection.rpn import concat_box_prediction_layers

from batchdet.engine.anchors import reference_boxes
from batchdet.training.loss_config import LossConfig, RCNNRules
from batchdet.training.seeds import derive_seed, torch_seed
from batchdet.training.targets import BETWEEN, Inputs, Target, make_inputs, match_references, on_ignored
from batchdet.training.terms import LossTerm, single


@dataclass(frozen=True, slots=True)
class Stage:
    """How one of the two stages chooses what it learns from.

    Attributes:
        number: keeps the stages' random numbers apart.
        matcher, sampler: torchvision's.
        ignore_overlap: share of a reference box's area from which it lies on an ignored one.
    """

    number: int
    matcher: Matcher
    sampler: BalancedPositiveNegativeSampler
    ignore_overlap: float


@dataclass(frozen=True, slots=True)
class Sample:
    """The reference boxes of a picture that are learned from.

    Attributes:
        places: [S] int64, positions among the reference boxes, ascending.
        labels: [S] int64, the category; 0 is background.
        wanted: [S, 4] float32, the object of each; of background any box.
        weights: [S] float32, factors of each one's losses.
    """

    places: Tensor
    labels: Tensor
    wanted: Tensor
    weights: Tensor


def rcnn_terms(
    model: Any, pictures: Sequence[Tensor], targets: Sequence[Target], rules: LossConfig
) -> dict[str, LossTerm]:
    """The losses of a batch under torchvision's names, each a sum and the number of boxes sampled.

    Args:
        model: a torchvision Faster R-CNN in training mode.
        pictures: uint8 [3, H, W] each, or float32 in [0, 1], on the model's device.
        targets: one per picture, on the same device.
        rules: matching, sampling and ignoring.
    """
    inputs = make_inputs(model, pictures, targets)
    features = model.backbone(inputs.batch.pixels)
    proposals, rpn_terms = _propose(model.rpn, features, inputs, rules)
    return _classify(model.roi_heads, features, proposals, inputs, rules) | rpn_terms


def rpn_stage(rules: RCNNRules, ignore_overlap: float) -> Stage:
    """Anchors: the best ones of every object are positive whatever their IoU."""
    matcher = Matcher(rules.rpn_foreground_iou, rules.rpn_background_iou, allow_low_quality_matches=True)
    return Stage(
        1, matcher, BalancedPositiveNegativeSampler(rules.rpn_anchors, rules.rpn_positive_share), ignore_overlap
    )


def roi_stage(rules: RCNNRules, ignore_overlap: float) -> Stage:
    """Proposals: only IoU makes them positive."""
    matcher = Matcher(rules.roi_foreground_iou, rules.roi_background_iou, allow_low_quality_matches=False)
    return Stage(
        2, matcher, BalancedPositiveNegativeSampler(rules.roi_samples, rules.roi_positive_share), ignore_overlap
    )


@torch.no_grad()
def draw_sample(target: Target, references: Tensor, stage: Stage) -> Sample:
    """Match the reference boxes of a picture ([R, 4]), take out what must not count, and sample the rest."""
    matched = match_references(stage.matcher, target.boxes, references)
    labels = torch.zeros_like(matched)
    positive = matched >= 0
    labels[positive] = target.labels[matched[positive]]
    outside = (matched == BETWEEN) | on_ignored(stage.matcher, target.ignored, references, stage.ignore_overlap)
    labels[outside] = -1
    seed = None if target.seed is None else derive_seed(target.seed, stage.number)
    with torch_seed(seed, references.device):
        (chosen_positive,), (chosen_negative,) = stage.sampler([labels])
    places = (chosen_positive | chosen_negative).nonzero().squeeze(1)
    weights = torch.full((len(places),), target.image_weight, device=references.device)
    if not len(target.boxes):
        return Sample(places, labels[places], references[places], weights)
    objects = matched[places].clamp(min=0)
    weights = weights * target.weights[objects].where(labels[places] > 0, 1.0)
    return Sample(places, labels[places], target.boxes[objects], weights)


def _propose(
    rpn: Any, features: Mapping[str, Tensor], inputs: Inputs, rules: LossConfig
) -> tuple[list[Tensor], dict[str, LossTerm]]:
    """Proposals of every picture ([R, 4] each, without gradient) and the losses of the first stage."""
    maps = list(features.values())
    levels, deltas = rpn.head(maps)
    num_images = len(inputs.targets)
    per_level = [level[0].numel() for level in levels]
    objectness, codes = (single(flat) for flat in concat_box_prediction_layers(levels, deltas))
    anchors = reference_boxes(rpn.anchor_generator, inputs.batch.pixels, maps)
    with torch.no_grad():
        boxes = rpn.box_coder.decode(codes.detach(), [anchors] * num_images).view(num_images, -1, 4)
        proposals, _ = rpn.filter_proposals(boxes, objectness, list(inputs.batch.sizes), per_level)
    stage = rpn_stage(rules.rcnn, rules.ignore_overlap)
    samples = [draw_sample(target, anchors, stage) for target in inputs.targets]
    object_sums, box_sums = [], []
    outputs = zip(objectness.view(num_images, -1), codes.view(num_images, -1, 4), strict=True)
    for sample, (logits, offsets) in zip(samples, outputs, strict=True):
        is_object = (sample.labels > 0).to(objectness)
        losses = binary_cross_entropy_with_logits(logits[sample.places], is_object, reduction="none")
        object_sums.append((losses * sample.weights).sum())
        box_sums.append(_box_loss(rpn.box_coder, offsets[sample.places], anchors[sample.places], sample, rules.rcnn))
    count = _count(samples, anchors.device)
    return proposals, {
        "loss_objectness": LossTerm(torch.stack(object_sums).sum(), count),
        "loss_rpn_box_reg": LossTerm(torch.stack(box_sums).sum(), count),
    }


def _classify(
    heads: Any, features: Mapping[str, Tensor], proposals: Sequence[Tensor], inputs: Inputs, rules: LossConfig
) -> dict[str, LossTerm]:
    """The losses of the second stage."""
    stage = roi_stage(rules.rcnn, rules.ignore_overlap)
    # As in the paper's code the objects are proposals too, so that there are positives from the first step on.
    candidates = [torch.cat([found, target.boxes]) for found, target in zip(proposals, inputs.targets, strict=True)]
    samples = [draw_sample(target, boxes, stage) for target, boxes in zip(inputs.targets, candidates, strict=True)]
    regions = [boxes[sample.places] for boxes, sample in zip(candidates, samples, strict=True)]
    # The pooler infers its scales from the first shapes it sees; labelling gives it the padded one as well.
    padded = [tuple(inputs.batch.pixels.shape[-2:])] * len(regions)
    logits, codes = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, regions, padded)))
    sizes = [len(sample.places) for sample in samples]
    outputs = zip(torch.split(single(logits), sizes), torch.split(single(codes), sizes), strict=True)
    class_sums, box_sums = [], []
    for sample, boxes, (image_logits, image_codes) in zip(samples, regions, outputs, strict=True):
        losses = cross_entropy(image_logits, sample.labels, reduction="none")
        class_sums.append((losses * sample.weights).sum())
        offsets = image_codes.view(len(sample.places), image_logits.shape[1], 4)
        own = offsets[torch.arange(len(sample.places), device=boxes.device), sample.labels]
        box_sums.append(_box_loss(heads.box_coder, own, boxes, sample, rules.rcnn))
    count = _count(samples, logits.device)
    return {
        "loss_classifier": LossTerm(torch.stack(class_sums).sum(), count),
        "loss_box_reg": LossTerm(torch.stack(box_sums).sum(), count),
    }


def _box_loss(coder: Any, offsets: Tensor, references: Tensor, sample: Sample, rules: RCNNRules) -> Tensor:
    """Weighted sum of smooth L1 over the positives of a sample: background has no box to learn ([u >= 1])."""
    positive = (sample.labels > 0).nonzero().squeeze(1)
    wanted = coder.encode_single(sample.wanted[positive], references[positive])
    losses = smooth_l1_loss(offsets[positive], wanted, reduction="none", beta=rules.smooth_l1_beta)
    total: Tensor = (losses * sample.weights[positive, None]).sum()
    return total


def _count(samples: Sequence[Sample], device: torch.device) -> Tensor:
    return torch.tensor(sum(len(sample.places) for sample in samples), device=device)
