"""The networks of a Faster R-CNN: trunk and region head, and how far two ways to run them lie apart. Decides nothing.

Shape shorthand: B images, D channels of a feature map, K anchors a feature map cell, R regions, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from batchdet.engine.anchors import reference_boxes
from batchdet.engine.detector import Batch
from batchdet.engine.frames import decode_boxes
from batchdet.engine.parts import Drift, Networks, Part, largest_difference, probe_pictures

POOLED_LEVEL = "pool"
"""torchvision's name of the coarsest level, which its pyramids add to the backbone's own."""
PROBE_SIZE = (192, 256)
"""Height and width of the pictures on which two ways to run the networks are compared."""
PROBE_ANCHORS, PROBE_REGIONS = 64, 32
"""Of each picture: the most object-like anchors of a level, and regions, on which they are compared."""


def rcnn_parts(model: Any) -> Mapping[str, Part]:
    """Trunk and region head; see `_Trunk` and `_RegionHead`."""
    regions = torch.zeros(2, model.backbone.out_channels, *model.roi_heads.box_roi_pool.output_size)
    return {
        "trunk": Part(_Trunk(model.backbone, model.rpn.head), _probe_batch(model).pixels, free=(0, 2, 3)),
        "region_head": Part(_RegionHead(model.roi_heads), regions, free=(0,)),
    }


class _Trunk(nn.Module):
    """Backbone and proposal head as a function of the pixels alone.

    [B, 3, H, W] to feature maps [B, D, h, w], logits [B, K, h, w] and box codes [B, K * 4, h, w], each level in turn.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = list(self.backbone(pixels).values())
        objectness, deltas = self.head(maps)
        return *maps, *objectness, *deltas


class _RegionHead(nn.Module):
    """Box head and predictor: pooled regions [R, D, h, w] to logits [R, C] and codes [R, C * 4]."""

    def __init__(self, heads: Any) -> None:
        super().__init__()
        self.box_head = heads.box_head
        self.box_predictor = heads.box_predictor

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        logits, codes = self.box_predictor(self.box_head(regions))
        return logits, codes


@dataclass(frozen=True, slots=True)
class TrunkOutputs:
    """What the trunk says of a batch, by pyramid level.

    Attributes:
        features: maps [B, D, h, w] by the names the region pooler knows them by.
        objectness: logits [B, K, h, w] float32.
        deltas: box codes [B, K * 4, h, w] float32.
    """

    features: Mapping[str, Tensor]
    objectness: Sequence[Tensor]
    deltas: Sequence[Tensor]


def run_trunk(model: Any, networks: Networks, batch: Batch) -> TrunkOutputs:
    """Backbone and proposal head of a torchvision Faster R-CNN, its own transform left out."""
    outputs = networks["trunk"](batch.pixels)
    levels = len(outputs) // 3
    names = (*model.backbone.body.return_layers.values(), POOLED_LEVEL)
    return TrunkOutputs(
        features=dict(zip(names, outputs[:levels], strict=True)),
        objectness=outputs[levels : 2 * levels],
        deltas=outputs[2 * levels :],
    )


def pool_regions(heads: Any, features: Mapping[str, Tensor], boxes: Sequence[Tensor], batch: Batch) -> Tensor:
    """Feature maps under boxes, [R, D, h, w].

    Args:
        heads: torchvision's region heads.
        features: maps by name.
        boxes: of each image [R_i, 4] float32 xyxy in its resized frame.
        batch: its padded shape places the maps.
    """
    # The pooler infers its scales from the first shapes it ever sees; the padded one gives every batch the same.
    padded = [tuple(batch.pixels.shape[-2:])] * len(batch.sizes)
    regions: Tensor = heads.box_roi_pool(dict(features), list(boxes), padded)
    return regions


def rcnn_drift(model: Any, networks: Networks, stock: Networks) -> Drift:
    """Of objectness and the most object-like anchors moved by their codes, class scores and regions moved by theirs."""
    batch = _probe_batch(model)
    mine, theirs = run_trunk(model, networks, batch), run_trunk(model, stock, batch)
    trunk = _trunk_drift(model.rpn, mine, theirs, batch)
    boxes = _made_regions(PROBE_REGIONS)
    regions = pool_regions(model.roi_heads, theirs.features, [boxes] * len(batch.sizes), batch)
    answers = networks["region_head"](regions), stock["region_head"](regions)
    head = _head_drift(model.roi_heads, *answers, boxes.repeat(len(batch.sizes), 1))
    return Drift(max(trunk.scores, head.scores), max(trunk.boxes, head.boxes))


def _probe_batch(model: Any) -> Batch:
    """Two made pictures as the model's transform would give them, small."""
    pixels = torch.stack([model.transform.normalize(picture) for picture in probe_pictures(*PROBE_SIZE)])
    return Batch(pixels, (PROBE_SIZE,) * 2, (PROBE_SIZE,) * 2)


def _made_regions(count: int) -> Tensor:
    """[count, 4] float32 xyxy boxes of many sizes inside the made pictures."""
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(0))
    low, high = corners.amin(dim=1), corners.amax(dim=1)
    height, width = PROBE_SIZE
    return torch.cat([low, high], dim=1) * torch.tensor([width, height, width, height], dtype=torch.float32)


def _trunk_drift(rpn: Any, mine: TrunkOutputs, theirs: TrunkOutputs, batch: Batch) -> Drift:
    anchors = reference_boxes(rpn.anchor_generator, batch.pixels, theirs.objectness)
    levels = torch.split(anchors, [level[0].numel() for level in theirs.objectness])
    scores, boxes = [], []
    for place, references in enumerate(levels):
        logits = [_by_anchor(outputs.objectness[place], 1).squeeze(-1) for outputs in (mine, theirs)]
        codes = [_by_anchor(outputs.deltas[place], 4) for outputs in (mine, theirs)]
        best = logits[1].topk(min(PROBE_ANCHORS, len(references)), dim=1).indices
        for image, chosen in enumerate(best):
            moved = [_moved(rpn.box_coder, of_level[image][chosen], references[chosen]) for of_level in codes]
            boxes.append(largest_difference(*moved))
        scores.append(largest_difference(logits[0].sigmoid(), logits[1].sigmoid()))
    return Drift(max(scores), max(boxes))


def _by_anchor(level: Tensor, numbers: int) -> Tensor:
    """[B, K * n, h, w] to [B, A, n], in torchvision's order of anchors."""
    num_images, channels, height, width = level.shape
    split = level.reshape(num_images, channels // numbers, numbers, height, width)
    return split.permute(0, 3, 4, 1, 2).reshape(num_images, -1, numbers)


def _head_drift(heads: Any, mine: Sequence[Tensor], theirs: Sequence[Tensor], regions: Tensor) -> Drift:
    """Of the scores of all classes, and of each region moved for the class it most looks like."""
    scores = theirs[0].softmax(dim=-1)
    best = scores[:, 1:].argmax(dim=1) + 1
    rows = torch.arange(len(best))
    codes = [answer[1].view(len(best), -1, 4)[rows, best] for answer in (mine, theirs)]
    moved = [_moved(heads.box_coder, chosen, regions) for chosen in codes]
    return Drift(largest_difference(mine[0].softmax(dim=-1), scores), largest_difference(*moved))


def _moved(coder: Any, codes: Tensor, references: Tensor) -> Tensor:
    """Boxes inside the made pictures."""
    return decode_boxes(coder, codes, references).clamp(min=0, max=max(PROBE_SIZE))
