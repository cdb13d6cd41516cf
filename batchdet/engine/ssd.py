"""The SSD family: default boxes, one vectorised pass from head outputs to detections. Knows no files and no policy.

Shape shorthand: B images, A default boxes an image, C classes with the background, N entries (default box, class).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead

from batchdet.engine.anchors import reference_boxes
from batchdet.engine.candidates import Candidates, any_per_image
from batchdet.engine.detections import Detections
from batchdet.engine.detector import Batch
from batchdet.engine.family import Thresholds
from batchdet.engine.frames import Frame, decode_boxes, rescale
from batchdet.engine.parts import Drift, Networks, Part, largest_difference, probe_pictures
from batchdet.engine.steps import Steps, steps_for

MOBILENET_C4 = 13
"""First block of stride 32 in MobileNetV3-Large: SSDlite takes its first feature map inside it."""
BATCH_IMAGES: Mapping[str, int] = MappingProxyType({"cpu": 4, "cuda": 32})
"""By device type."""


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

    @property
    def batch_images(self) -> Mapping[str, int]:
        """See `Family.batch_images`."""
        return BATCH_IMAGES

    def parts(self, model: Any) -> Mapping[str, Part]:
        """One: backbone and heads; see `_Network`."""
        height, width = _input_size(model)
        network, example = _Network(model.backbone, model.head), torch.zeros(2, 3, height, width)
        return {"network": Part(network, example, free=(0,), takes_pictures=True)}

    def drift(self, model: Any, networks: Networks, stock: Networks) -> Drift:
        """Of the scores of all classes, and of all default boxes moved by their offsets; see `Family.drift`."""
        height, width = _input_size(model)
        pixels = torch.stack([model.transform.normalize(picture) for picture in probe_pictures(height, width)])
        batch = Batch(pixels, ((height, width),) * 2, ((height, width),) * 2)
        mine, theirs = run_network(model, networks, batch), run_network(model, stock, batch)
        return Drift(
            scores=largest_difference(mine.logits.softmax(dim=-1), theirs.logits.softmax(dim=-1)),
            boxes=largest_difference(_all_boxes(model, mine), _all_boxes(model, theirs)),
        )

    def detect(self, model: nn.Module, networks: Networks, batch: Batch) -> Detections:
        """See `Family.detect`."""
        found = postprocess(run_network(model, networks, batch), batch.sizes, model)
        return replace(found, boxes=rescale(found.boxes, found.image_index, batch.sizes, batch.original_sizes))


class _Network(nn.Module):
    """Backbone and heads of a torchvision SSD as a function of the pixels alone.

    [B, 3, H, W] to offsets [B, A, 4], logits [B, A, C], and one channel of each feature map [B, 1, h, w],
    whose shape says where its default boxes lie.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        features = list(self.backbone(pixels).values())
        outputs = self.head(features)
        return outputs["bbox_regression"], outputs["cls_logits"], *(level[:, :1] for level in features)


def run_network(model: Any, networks: Networks, batch: Batch) -> HeadOutputs:
    """Backbone and heads of a torchvision SSD, its own transform left out."""
    offsets, logits, *maps = networks["network"](batch.pixels)
    return HeadOutputs(offsets, logits, reference_boxes(model.anchor_generator, batch.pixels, maps))


def _input_size(model: Any) -> Frame:
    width, height = model.transform.fixed_size
    return int(height), int(width)


def _first_head_rows(weights: Mapping[str, Tensor], head: str) -> int:
    prefix = f"head.{head}.module_list.0."
    rows = [tensor.shape[0] for name, tensor in weights.items() if name.startswith(prefix) and name.endswith("bias")]
    # In SSDlite the depthwise part before the predicting layer has a normalisation with a bias of its own.
    return rows[-1]


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


def postprocess(outputs: HeadOutputs, sizes: Sequence[Frame], model: Any, steps: Steps | None = None) -> Detections:
    """From head outputs to detections: `SSD.postprocess_detections` for the whole batch at once.

    Boxes, scores, labels and their order equal torchvision's bit for bit on the CPU; equal scores, whose order
    torchvision leaves open, come in the order of default box, then label.

    Args:
        outputs: of B images.
        sizes: B resized frames.
        model: holds `score_thresh`, `nms_thresh`, `topk_candidates`, `detections_per_img` and `box_coder`.
        steps: whose; None takes those of the outputs' device.

    Returns:
        Detections in the resized frames. `capped`: the top-k of a class or the cap of an image removed entries.
        `finite`: so were all offsets and logits of an image; otherwise it has no detections.
    """
    steps = steps or steps_for(outputs.logits.device)
    num_images, num_anchors, num_classes = outputs.logits.shape
    finite = steps.all_finite(outputs.offsets, outputs.logits)
    rows, labels, scores = steps.confident_entries(outputs.logits, None, finite, model.score_thresh)
    images = rows // num_anchors
    capped = torch.zeros_like(finite)
    segments = images * num_classes + labels
    below = steps.beyond_limit(segments, scores, num_images * num_classes, model.topk_candidates)
    if below is not None:
        capped = any_per_image(below, images, num_images)
        top = (~below).nonzero().squeeze(1)
        rows, scores, labels, images = (column.index_select(0, top) for column in (rows, scores, labels, images))

    codes = outputs.offsets.reshape(-1, 4).index_select(0, rows)
    defaults = outputs.default_boxes.index_select(0, rows - images * num_anchors)
    found = Candidates(steps.boxes(model.box_coder, codes, defaults, images, sizes), scores, labels, images)
    left, over = steps.survivors(found, num_images, model.nms_thresh, model.detections_per_img)
    return Detections(left.boxes, left.scores, left.labels, left.image_index, capped | over, finite)
