"""Made outputs of detection heads, with a few objects a picture, and torchvision's postprocessing without a network."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.models.detection.ssd import SSD

from batchdet.engine.detections import Detections
from batchdet.engine.device_steps import best_first
from batchdet.engine.ssd import HeadOutputs

OBJECTS = 7
GRIDS = {"ssd300": (38, 19, 10, 5, 3, 1), "ssdlite320": (20, 10, 5, 3, 2, 1)}


def ssd_without_network(kind: str, num_classes: int) -> Any:
    """A torchvision SSD that can only postprocess, with the limits of its builder."""
    if kind == "ssd300":
        ratios = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
        scales = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
        generator = DefaultBoxGenerator(ratios, scales=scales, steps=[8, 16, 32, 64, 100, 300])
        return SSD(nn.Identity(), generator, (300, 300), num_classes, head=nn.Identity())
    generator = DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95)
    limits = {"score_thresh": 0.001, "nms_thresh": 0.55, "detections_per_img": 300, "topk_candidates": 300}
    return SSD(nn.Identity(), generator, (320, 320), num_classes, head=nn.Identity(), **limits)


def ssd_outputs(model: Any, kind: str, num_images: int, num_classes: int, background: float = 8.0) -> HeadOutputs:
    """Logits and codes of pictures with `OBJECTS` objects; a lower background logit lets more noise through."""
    generator = torch.Generator().manual_seed(num_images)
    side = model.transform.fixed_size[0]
    maps = [torch.zeros(1, 1, grid, grid) for grid in GRIDS[kind]]
    (default_boxes,) = model.anchor_generator(ImageList(torch.zeros(1, 3, side, side), [(side, side)]), maps)
    count = len(default_boxes)
    logits = torch.randn(num_images, count, num_classes, generator=generator)
    logits[..., 0] += background
    offsets = torch.randn(num_images, count, 4, generator=generator) * 0.5
    for image in range(num_images):
        labels = torch.randint(1, num_classes, (OBJECTS,), generator=generator).tolist()
        for label, box in zip(labels, random_objects(OBJECTS, side, generator), strict=True):
            overlap = torchvision.ops.box_iou(box[None], default_boxes)[0]
            near = overlap > 0.4
            logits[image, near, label] += 8 + 20 * (overlap[near] - 0.4)
            codes = model.box_coder.encode_single(box.expand(int(near.sum()), 4), default_boxes[near])
            offsets[image, near] = codes + torch.randn(codes.shape, generator=generator) * 0.3
    return HeadOutputs(offsets, logits, default_boxes)


def random_objects(count: int, side: float, generator: torch.Generator) -> Tensor:
    """[count, 4] xyxy boxes of 10 to 60 % of the side, inside it."""
    center = torch.rand(count, 2, generator=generator) * side
    half = (torch.rand(count, 2, generator=generator) * 0.5 + 0.1) * side / 2
    return torch.cat([center - half, center + half], dim=1).clamp(0, side)


@dataclass(frozen=True)
class RPNOutputs:
    """Objectness [B, K, H, W] and codes [B, K * 4, H, W] of every level, over images of one padded shape."""

    objectness: list[Tensor]
    deltas: list[Tensor]
    images: ImageList


def rpn_without_network(kind: str) -> Any:
    """torchvision's proposal network that can only filter; `resnet50` or `mobilenet320` limits."""
    big = kind == "resnet50"
    sizes = ((32,), (64,), (128,), (256,), (512,)) if big else ((32, 64, 128, 256, 512),) * 3
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    limit = {"training": 0, "testing": 1000 if big else 150}
    floor = 0.0 if big else 0.05
    rpn: Any = RegionProposalNetwork(generator, nn.Identity(), 0.7, 0.3, 256, 0.5, limit, limit, 0.7, floor)
    return rpn.eval()


def rpn_outputs(kind: str, num_images: int, shape: tuple[int, int]) -> RPNOutputs:
    """Noise with blobs of objectness; every second image is smaller than the padded shape."""
    generator = torch.Generator().manual_seed(num_images)
    strides, kinds = ((4, 8, 16, 32, 64), 3) if kind == "resnet50" else ((32, 32, 64), 15)
    objectness, deltas = [], []
    for stride in strides:
        height, width = -(-shape[0] // stride), -(-shape[1] // stride)
        noise = torch.randn(num_images, kinds, height, width, generator=generator)
        blobs = nn.functional.interpolate(torch.randn(num_images, kinds, 3, 3, generator=generator), (height, width))
        objectness.append(noise + 2 * blobs - 2)
        deltas.append(torch.randn(num_images, kinds * 4, height, width, generator=generator) * 0.3)
    sizes = [shape if index % 2 == 0 else (shape[0] - 13, shape[1] - 40) for index in range(num_images)]
    return RPNOutputs(objectness, deltas, ImageList(torch.zeros(num_images, 3, *shape), sizes))


def stock_proposals(rpn: Any, outputs: RPNOutputs) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes and scores of torchvision's own path from head outputs to proposals."""
    counts = [level[0].numel() for level in outputs.objectness]
    anchors = rpn.anchor_generator(outputs.images, outputs.objectness)
    objectness, deltas = concat_box_prediction_layers(outputs.objectness, outputs.deltas)
    proposals = rpn.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
    boxes, scores = rpn.filter_proposals(proposals, objectness, outputs.images.image_sizes, counts)
    return boxes, scores


def roi_heads_without_network() -> Any:
    """torchvision's region heads that can only postprocess."""
    heads: Any = RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, None, 0.05, 0.5, 100)
    return heads.eval()


def region_outputs(
    per_image: int, num_images: int, num_classes: int, shape: tuple[int, int]
) -> tuple[Tensor, Tensor, Detections]:
    """Logits [R, C], codes [R, C * 4] and proposals clustered around `OBJECTS` objects a picture."""
    generator = torch.Generator().manual_seed(num_images)
    rows = per_image * num_images
    images = torch.arange(num_images).repeat_interleave(per_image)
    objects = random_objects(OBJECTS * num_images, min(shape), generator)
    owner = torch.randint(0, OBJECTS, (rows,), generator=generator)
    boxes = objects[images * OBJECTS + owner] + torch.randn(rows, 4, generator=generator) * 8
    boxes = torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)], dim=1).clamp(min=0)
    logits = torch.randn(rows, num_classes, generator=generator)
    logits[:, 0] += 4
    seen = torch.rand(rows, generator=generator) < 0.2
    labels = 1 + (images * OBJECTS + owner) * 37 % (num_classes - 1)
    logits[seen, labels[seen]] += 7
    codes = torch.randn(rows, num_classes * 4, generator=generator) * 0.5
    scores = torch.rand(rows, generator=generator)
    order = best_first(images, scores)
    none = torch.zeros(num_images, dtype=torch.bool)
    return logits, codes, Detections(boxes[order], scores[order], torch.zeros_like(images), images, none, ~none)


def tie_order(scores: Tensor, boxes: Tensor) -> Tensor:
    """Positions by falling score, equal ones by box."""
    columns = [*(boxes[:, side].numpy() for side in range(4)), -scores.numpy()]
    return torch.from_numpy(np.lexsort(columns))
