"""The SSD family: default boxes, one vectorised pass from head outputs to detections. Knows no files and no policy.

Shape shorthand: B images, A default boxes an image, C classes with the background, N entries (default box, class).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead

from batchdet.engine.anchors import reference_boxes
from batchdet.engine.candidates import (
    all_finite,
    any_per_image,
    best_first,
    confident_entries,
    keep_best,
    rank_in_segment,
)
from batchdet.engine.detections import Detections
from batchdet.engine.detector import Batch
from batchdet.engine.family import Thresholds
from batchdet.engine.folding import folded, probe_pictures
from batchdet.engine.frames import Frame, clip_to_frames, decode_boxes, rescale
from batchdet.engine.nms import batched_nms

MOBILENET_C4 = 13
"""First block of stride 32 in MobileNetV3-Large: SSDlite takes its first feature map inside it."""
BATCH_IMAGES = {"plain": 1, "folded": 4, "cuda": 32}
"""By the way the network runs: plain convolutions on a CPU slow down with the batch."""
SCORE_DRIFT, BOX_DRIFT = 2e-6, 5e-4
"""Largest difference of a score, and of a box in pixels, that folding may make on made pictures."""


@dataclass(frozen=True, slots=True)
class HeadOutputs:
    """What the network says of a batch.

    Attributes:
        offsets: [B, A, 4] float32, box codes relative to the default boxes.
        logits: [B, A, C] float32; class 0 is the background.
        default_boxes: [A, 4] float32 xyxy pixels of the resized frame.
    """

    offsets: Tensor
    logits: Tensor
    default_boxes: Tensor


class SSDFamily:
    """`torchvision.models.detection.SSD` and its builders."""

    def build(
        self, architecture: str, num_classes: int, weights: Mapping[str, Tensor], torchvision_name: str | None
    ) -> nn.Module:
        """The builder's model; see `Family.build`."""
        model: nn.Module = torchvision.models.get_model(
            architecture, weights=None, weights_backbone=None, num_classes=num_classes
        )
        widen_tail(model, num_classes, weights)
        return model

    def count_classes(self, weights: Mapping[str, Tensor]) -> int:
        """Rows of the first classification layer per default box; see `Family.count_classes`."""
        anchors = _first_head_rows(weights, "regression_head") // 4
        return _first_head_rows(weights, "classification_head") // anchors

    def thresholds(self, model: Any) -> Thresholds:
        """The model itself."""
        return cast(Thresholds, model)

    def settle(self, model: nn.Module, device: torch.device) -> tuple[nn.Module, int]:
        """On a CPU with folded normalisation, about 1.6 times as fast, where that moves no output noticeably."""
        if device.type != "cpu":
            return model.to(device), BATCH_IMAGES["cuda"]
        fast = folded(model)
        return (fast, BATCH_IMAGES["folded"]) if _agree(fast, model) else (model, BATCH_IMAGES["plain"])

    def detect(self, model: nn.Module, batch: Batch) -> Detections:
        """Detections of a batch, boxes in the original frames."""
        found = postprocess(run_network(model, batch), batch.sizes, model)
        return replace(found, boxes=rescale(found.boxes, found.image_index, batch.sizes, batch.original_sizes))


def _first_head_rows(weights: Mapping[str, Tensor], head: str) -> int:
    prefix = f"head.{head}.module_list.0."
    rows = [tensor.shape[0] for name, tensor in weights.items() if name.startswith(prefix) and name.endswith("bias")]
    # In SSDlite the depthwise part before the predicting layer has a normalisation with a bias of its own.
    return rows[-1]


def _agree(one: Any, other: Any) -> bool:
    """Whether two networks give made pictures the same scores and boxes, well inside what counts as equal."""
    width, height = one.transform.fixed_size
    pixels = torch.stack([one.transform.normalize(picture) for picture in probe_pictures(height, width)])
    batch = Batch(pixels, ((height, width),) * 2, ((height, width),) * 2)
    with torch.inference_mode():
        mine, theirs = run_network(one, batch), run_network(other, batch)
        scores = (mine.logits.softmax(dim=-1) - theirs.logits.softmax(dim=-1)).abs().amax()
        boxes = (_all_boxes(one, mine) - _all_boxes(other, theirs)).abs().amax()
    return float(scores) <= SCORE_DRIFT and float(boxes) <= BOX_DRIFT


def _all_boxes(model: Any, outputs: HeadOutputs) -> Tensor:
    """[B * A, 4], clipped to the picture."""
    references = outputs.default_boxes.repeat(outputs.offsets.shape[0], 1)
    boxes = decode_boxes(model.box_coder, outputs.offsets.reshape(-1, 4), references)
    return boxes.clamp(min=0, max=max(model.transform.fixed_size))


def widen_tail(model: Any, num_classes: int, weights: Mapping[str, Tensor]) -> None:
    """Give an SSDlite the wide last stage of MobileNetV3 where the weights have it.

    torchvision builds the reduced one unless it starts from a backbone trained on ImageNet, and no file says so.
    """
    wide = weights.get("backbone.extra.0.0.0.weight")
    narrow = model.state_dict().get("backbone.extra.0.0.0.weight")
    if wide is None or narrow is None or wide.shape == narrow.shape:
        return
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    features = torchvision.models.mobilenet_v3_large(weights=None, norm_layer=norm).features
    model.backbone = SSDLiteFeatureExtractorMobileNet(features, MOBILENET_C4, norm)
    channels = [layer[0][0].in_channels for layer in model.head.classification_head.module_list]
    channels[1] = wide.shape[1]
    model.head = SSDLiteHead(channels, model.anchor_generator.num_anchors_per_location(), num_classes, norm)


def run_network(model: Any, batch: Batch) -> HeadOutputs:
    """Backbone and heads of a torchvision SSD, its own transform left out."""
    features = list(model.backbone(batch.pixels).values())
    outputs = model.head(features)
    default_boxes = reference_boxes(model.anchor_generator, batch.pixels, features)
    return HeadOutputs(outputs["bbox_regression"].float(), outputs["cls_logits"].float(), default_boxes)


def postprocess(outputs: HeadOutputs, sizes: Sequence[Frame], model: Any) -> Detections:
    """From head outputs to detections: `SSD.postprocess_detections` for the whole batch at once.

    Boxes, scores, labels and their order equal torchvision's bit for bit on the CPU; equal scores, whose order
    torchvision leaves open, come in the order of default box, then label.

    Args:
        outputs: of B images.
        sizes: B resized frames.
        model: holds `score_thresh`, `nms_thresh`, `topk_candidates`, `detections_per_img` and `box_coder`.

    Returns:
        Detections in the resized frames. `capped`: the top-k of a class or the cap of an image removed entries.
        `finite`: so were all offsets and logits of an image; otherwise it has no detections.
    """
    num_images, num_anchors, num_classes = outputs.logits.shape
    per_image = num_anchors * num_classes
    finite = all_finite(outputs.offsets, outputs.logits)
    usable = finite.repeat_interleave(num_anchors, output_size=num_images * num_anchors)
    entries, scores = confident_entries(outputs.logits, usable, model.score_thresh)
    order = best_first(entries // per_image, scores)
    entries, scores = entries.index_select(0, order), scores.index_select(0, order)
    images = entries // per_image
    capped = torch.zeros(num_images, dtype=torch.bool, device=scores.device)

    if entries.shape[0] > model.topk_candidates:
        below = rank_in_segment(images * num_classes + entries % num_classes) >= model.topk_candidates
        capped = any_per_image(below, images, num_images)
        top = (~below).nonzero().squeeze(1)
        entries, scores, images = (column.index_select(0, top) for column in (entries, scores, images))

    anchors, labels = entries // num_classes, entries % num_classes
    codes = outputs.offsets.reshape(-1, 4).index_select(0, anchors)
    boxes = decode_boxes(model.box_coder, codes, outputs.default_boxes.index_select(0, anchors % num_anchors))
    boxes = clip_to_frames(boxes, images, sizes)
    keep = batched_nms(boxes, scores, labels, images, model.nms_thresh)
    found = Detections(boxes, scores, labels, images, capped, finite)
    return keep_best(found.select(keep), model.detections_per_img)
