"""The Faster R-CNN family: proposals and region heads, one vectorised pass each. Knows no files and no policy.

Shape shorthand: B images, R proposals of all of them, C classes with the background, N entries (proposal, class),
K anchors a feature map cell, T proposals kept per image before NMS, over all levels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from batchdet.engine.anchors import reference_boxes
from batchdet.engine.candidates import all_finite, any_per_image, best_first, confident_entries, keep_best
from batchdet.engine.detections import Detections
from batchdet.engine.detector import Batch
from batchdet.engine.family import Thresholds
from batchdet.engine.frames import Frame, clip_to_frames, decode_boxes, rescale
from batchdet.engine.nms import batched_nms

BATCH_IMAGES = {"cpu": 1, "cuda": 8}
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

    def settle(self, model: nn.Module, device: torch.device) -> tuple[nn.Module, int]:
        """The model as it is: rounding may swap proposals of nearly equal scores, and with them whole rows."""
        return model.to(device), BATCH_IMAGES[device.type]

    def detect(self, model: Any, batch: Batch) -> Detections:
        """Detections of a batch, boxes in the original frames."""
        features = model.backbone(batch.pixels)
        proposals = propose(model.rpn, features, batch)
        found = classify(model.roi_heads, features, proposals, batch)
        return replace(found, boxes=rescale(found.boxes, found.image_index, batch.sizes, batch.original_sizes))


def propose(rpn: Any, features: Mapping[str, Tensor], batch: Batch) -> Detections:
    """Proposals of a batch in the resized frames: torchvision's region proposal network in its eval mode."""
    maps = list(features.values())
    objectness, deltas = rpn.head(maps)
    anchors = reference_boxes(rpn.anchor_generator, batch.pixels, maps)
    return propose_from(rpn, [level.float() for level in objectness], [d.float() for d in deltas], anchors, batch.sizes)


@dataclass(frozen=True, slots=True)
class TopAnchors:
    """The most object-like anchors of one pyramid level.

    Attributes:
        anchors: [B, T] int64, positions among the level's anchors: (row, column, kind) flattened.
        objectness: [B, T] logits, descending.
        offset: anchors of the levels before.
    """

    anchors: Tensor
    objectness: Tensor
    offset: int


def _top_anchors(objectness: Sequence[Tensor], limit: int) -> list[TopAnchors]:
    """The `limit` best of every level, from its logits [B, K, H, W]."""
    tops, offset = [], 0
    for level in objectness:
        flat = level.permute(0, 2, 3, 1).flatten(1)
        values, anchors = flat.topk(min(limit, flat.shape[1]), dim=1)
        tops.append(TopAnchors(anchors, values, offset))
        offset += flat.shape[1]
    return tops


def _pick_codes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Box codes [B, T, 4] of chosen anchors [B, T], from a level's [B, K * 4, H, W]: nothing else is copied."""
    num_images, channels, height, width = deltas.shape
    kinds = channels // 4
    images = torch.arange(num_images, device=deltas.device)[:, None]
    cells = anchors // kinds
    return deltas.reshape(num_images, kinds, 4, height, width)[
        images, anchors % kinds, :, cells // width, cells % width
    ]


def propose_from(
    rpn: Any, objectness: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Tensor, sizes: Sequence[Frame]
) -> Detections:
    """`RegionProposalNetwork.filter_proposals` for the whole batch, decoding only the anchors that are left.

    Args:
        rpn: holds the limits and the box coder.
        objectness: logits [B, K, H, W] of every level.
        deltas: box codes [B, K * 4, H, W] of every level.
        anchors: [A, 4] of all levels in turn.
        sizes: B resized frames.

    Returns:
        Proposals; `labels` are pyramid levels. The caps of this stage are the model's own business and flag nothing.
        No box is NaN, whatever the outputs.
    """
    tops = _top_anchors(objectness, rpn.pre_nms_top_n())
    codes = torch.cat([_pick_codes(level, top.anchors) for level, top in zip(deltas, tops, strict=True)], dim=1)
    num_images, per_image, _ = codes.shape
    device = codes.device
    chosen = torch.cat([top.anchors + top.offset for top in tops], dim=1).flatten()
    scores = torch.cat([top.objectness for top in tops], dim=1).sigmoid().flatten()
    spans = torch.tensor([top.anchors.shape[1] for top in tops], device=device)
    levels = torch.repeat_interleave(torch.arange(len(tops), device=device), spans).repeat(num_images)
    images = torch.arange(num_images, device=device).repeat_interleave(per_image)

    boxes = clip_to_frames(
        decode_boxes(rpn.box_coder, codes.reshape(-1, 4), anchors.index_select(0, chosen)), images, sizes
    )
    capped = torch.zeros(num_images, dtype=torch.bool, device=device)
    found = Detections(boxes, scores, levels, images, capped, all_finite(*objectness, *deltas))
    # Comparisons with NaN are false, so nothing of a network gone wrong comes through.
    found = found.select(_has_sides(boxes, rpn.min_size) & (scores >= rpn.score_thresh))
    found = found.select(best_first(found.image_index, found.scores))
    found = found.select(batched_nms(found.boxes, found.scores, found.labels, found.image_index, rpn.nms_thresh))
    return keep_best(found, rpn.post_nms_top_n())


def classify(heads: Any, features: Mapping[str, Tensor], proposals: Detections, batch: Batch) -> Detections:
    """Detections in the resized frames: torchvision's region heads in their eval mode."""
    counts = torch.bincount(proposals.image_index, minlength=len(batch.sizes)).tolist()
    # The pooler infers its scales from the first shapes it ever sees; the padded one gives every batch the same.
    padded = [tuple(batch.pixels.shape[-2:])] * len(batch.sizes)
    regions = heads.box_roi_pool(features, list(torch.split(proposals.boxes, counts)), padded)
    logits, codes = heads.box_predictor(heads.box_head(regions))
    return postprocess(heads, logits.float(), codes.float(), proposals, batch.sizes)


def postprocess(heads: Any, logits: Tensor, codes: Tensor, proposals: Detections, sizes: Sequence[Frame]) -> Detections:
    """`RoIHeads.postprocess_detections` for the whole batch, decoding only what passes the threshold.

    Args:
        heads: holds the thresholds and the box coder.
        logits: [R, C].
        codes: [R, C * 4], box codes per class relative to the proposal.
        proposals: R of B images.
        sizes: B resized frames.

    Returns:
        Detections in the resized frames. `capped`: the cap of an image removed entries. `finite`: so were proposals
        and all of their logits and codes; otherwise the image has no detections.
    """
    num_images = proposals.finite.shape[0]
    broken = any_per_image(~all_finite(logits, codes), proposals.image_index, num_images)
    finite = proposals.finite & ~broken
    entries, scores = confident_entries(logits, finite.index_select(0, proposals.image_index), heads.score_thresh)
    rows, labels = entries // logits.shape[1], entries % logits.shape[1]
    images = proposals.image_index.index_select(0, rows)
    codes = codes.reshape(-1, 4).index_select(0, entries)
    boxes = decode_boxes(heads.box_coder, codes, proposals.boxes.index_select(0, rows))
    boxes = clip_to_frames(boxes, images, sizes)
    found = Detections(boxes, scores, labels, images, torch.zeros_like(finite), finite)
    found = found.select(_has_sides(boxes, SMALLEST_SIDE))
    found = found.select(best_first(found.image_index, found.scores))
    found = found.select(batched_nms(found.boxes, found.scores, found.labels, found.image_index, heads.nms_thresh))
    return keep_best(found, heads.detections_per_img)


def _has_sides(boxes: Tensor, smallest: float) -> Tensor:
    """[N] bool: both sides at least `smallest` pixels, as `torchvision.ops.remove_small_boxes` measures them."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= smallest).all(dim=1)


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
