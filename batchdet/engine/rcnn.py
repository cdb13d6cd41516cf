"""The Faster R-CNN family: proposals and region heads, one vectorised pass each. Knows no files and no policy.

Shape shorthand: B images, R proposals of all of them, C classes with the background, N entries (proposal, class),
K anchors a feature map cell, T proposals kept per image before NMS, over all levels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from batchdet.engine.anchors import CACHED_SHAPES, reference_boxes
from batchdet.engine.candidates import Candidates
from batchdet.engine.detections import Detections
from batchdet.engine.detector import Batch
from batchdet.engine.family import Thresholds
from batchdet.engine.frames import Frame, rescale
from batchdet.engine.parts import Drift, Networks, Part
from batchdet.engine.rcnn_networks import TrunkOutputs, pool_regions, rcnn_drift, rcnn_parts, run_trunk
from batchdet.engine.steps import Steps, steps_for

BATCH_IMAGES: Mapping[str, int] = MappingProxyType({"cpu": 1, "cuda": 8})
"""By device type."""
SMALLEST_SIDE = 1e-2
"""Pixels under which torchvision's region heads drop a box."""

NORM_EPSILONS: Mapping[tuple[str, str | None], float] = MappingProxyType({("fasterrcnn_resnet50_fpn", "COCO_V1"): 0.0})
"""torchvision weights that were trained before its frozen normalisation had an epsilon, and are run without one."""


class RCNNFamily:
    """`torchvision.models.detection.FasterRCNN` and its builders."""

    def build(
        self, architecture: str, num_classes: int, weights: Mapping[str, Tensor], torchvision_name: str | None
    ) -> nn.Module:
        """The builder's model; see `Family.build`."""
        model: nn.Module = torchvision.models.get_model(
            architecture, weights=None, weights_backbone=None, num_classes=num_classes
        )
        freeze_norms(model, weights, NORM_EPSILONS.get((architecture, torchvision_name)))
        return model

    def count_classes(self, weights: Mapping[str, Tensor]) -> int:
        """Rows of the classification layer; see `Family.count_classes`."""
        return weights["roi_heads.box_predictor.cls_score.weight"].shape[0]

    def thresholds(self, model: Any) -> Thresholds:
        """The model's region heads."""
        return cast(Thresholds, model.roi_heads)

    @property
    def batch_images(self) -> Mapping[str, int]:
        """See `Family.batch_images`."""
        return BATCH_IMAGES

    def parts(self, model: Any) -> Mapping[str, Part]:
        """Two, with the choice of proposals between them."""
        return rcnn_parts(model)

    def drift(self, model: Any, networks: Networks, stock: Networks) -> Drift:
        """See `Family.drift` and `rcnn_drift`."""
        return rcnn_drift(model, networks, stock)

    def detect(self, model: Any, networks: Networks, batch: Batch) -> Detections:
        """See `Family.detect`."""
        outputs = run_trunk(model, networks, batch)
        proposals = propose(model.rpn, outputs, batch)
        counts = torch.bincount(proposals.image_index, minlength=len(batch.sizes)).tolist()
        boxes = list(torch.split(proposals.boxes, counts))
        regions = pool_regions(model.roi_heads, outputs.features, boxes, batch)
        logits, codes = networks["region_head"](regions)
        found = postprocess(model.roi_heads, logits, codes, proposals, batch.sizes)
        return replace(found, boxes=rescale(found.boxes, found.image_index, batch.sizes, batch.original_sizes))


def propose(rpn: Any, outputs: TrunkOutputs, batch: Batch) -> Detections:
    """Proposals of a batch in the resized frames: torchvision's region proposal network in its eval mode."""
    anchors = reference_boxes(rpn.anchor_generator, batch.pixels, outputs.objectness)
    return propose_from(rpn, outputs.objectness, outputs.deltas, anchors, batch.sizes)


def propose_from(
    rpn: Any,
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    sizes: Sequence[Frame],
    steps: Steps | None = None,
) -> Detections:
    """`RegionProposalNetwork.filter_proposals` for the whole batch, decoding only the anchors that are left.

    Args:
        rpn: holds the limits and the box coder.
        objectness: logits [B, K, H, W] of every level.
        deltas: box codes [B, K * 4, H, W] of every level.
        anchors: [A, 4] of all levels in turn.
        sizes: B resized frames.
        steps: whose; None takes those of the outputs' device.

    Returns:
        Proposals; `labels` are pyramid levels. The caps of this stage are the model's own business and flag nothing.
        No box is NaN, whatever the outputs.
    """
    steps = steps or steps_for(anchors.device)
    finite = steps.all_finite(*objectness, *deltas)
    top = steps.top_anchors(objectness, deltas, rpn.pre_nms_top_n())
    num_images = top.anchors.shape[0]
    images, levels = _places_of(num_images, top.levels, anchors.device)
    scores = top.objectness.sigmoid().flatten()
    references = anchors.index_select(0, top.anchors.flatten())
    boxes = steps.boxes(rpn.box_coder, top.codes.reshape(-1, 4), references, images, sizes)
    # Comparisons with NaN are false, so nothing of a network gone wrong comes through.
    found = steps.with_sides(Candidates(boxes, scores, levels, images), rpn.min_size, rpn.score_thresh)
    left, _ = steps.survivors(found, num_images, rpn.nms_thresh, rpn.post_nms_top_n())
    return Detections(left.boxes, left.scores, left.labels, left.image_index, torch.zeros_like(finite), finite)


@lru_cache(CACHED_SHAPES)
def _places_of(num_images: int, levels: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Image and level of every proposal, [B * T] each, when each image has so many of every level."""
    level = torch.cat([torch.full((count,), place, device=device) for place, count in enumerate(levels)])
    image = torch.arange(num_images, device=device)[:, None].expand(num_images, level.shape[0])
    return image.flatten(), level.repeat(num_images)


def postprocess(
    heads: Any,
    logits: Tensor,
    codes: Tensor,
    proposals: Detections,
    sizes: Sequence[Frame],
    steps: Steps | None = None,
) -> Detections:
    """`RoIHeads.postprocess_detections` for the whole batch, decoding only what passes the threshold.

    Args:
        heads: holds the thresholds and the box coder.
        logits: [R, C].
        codes: [R, C * 4], box codes per class relative to the proposal.
        proposals: R of B images.
        sizes: B resized frames.
        steps: whose; None takes those of the outputs' device.

    Returns:
        Detections in the resized frames. `capped`: the cap of an image removed entries. `finite`: so were proposals
        and all of their logits and codes; otherwise the image has no detections.
    """
    steps = steps or steps_for(logits.device)
    num_images, num_classes = proposals.finite.shape[0], logits.shape[1]
    finite = proposals.finite & steps.finite_images(proposals.image_index, num_images, logits, codes)
    rows, labels, scores = steps.confident_entries(logits, proposals.image_index, finite, heads.score_thresh)
    images = proposals.image_index.index_select(0, rows)
    codes = codes.reshape(-1, 4).index_select(0, rows * num_classes + labels)
    boxes = steps.boxes(heads.box_coder, codes, proposals.boxes.index_select(0, rows), images, sizes)
    found = steps.with_sides(Candidates(boxes, scores, labels, images), SMALLEST_SIDE, heads.score_thresh)
    left, over = steps.survivors(found, num_images, heads.nms_thresh, heads.detections_per_img)
    return Detections(left.boxes, left.scores, left.labels, left.image_index, over, finite)


def freeze_norms(model: nn.Module, weights: Mapping[str, Tensor], epsilon: float | None) -> None:
    """Give the model torchvision's frozen normalisation wherever the weights count no training batches.

    Its builders do that for pretrained backbones, and the file does not say so otherwise.
    """
    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            full = f"{name}.{child_name}" if name else child_name
            if isinstance(child, nn.BatchNorm2d) and f"{full}.num_batches_tracked" not in weights:
                setattr(
                    module, child_name, FrozenBatchNorm2d(child.num_features, child.eps if epsilon is None else epsilon)
                )
