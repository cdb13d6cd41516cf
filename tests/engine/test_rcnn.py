"""Faster R-CNN's vectorised passes against torchvision's `filter_proposals` and `postprocess_detections`."""

from typing import Any

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from batchdet.engine.rcnn import postprocess, propose_from
from tests.engine.outputs import (
    region_outputs,
    roi_heads_without_network,
    rpn_outputs,
    rpn_without_network,
    stock_proposals,
    tie_order,
)


@pytest.mark.parametrize(
    ("kind", "num_images", "shape"),
    [
        ("mobilenet320", 1, (320, 448)),
        ("mobilenet320", 5, (320, 320)),
        ("resnet50", 1, (800, 1088)),  # thousands of boxes an image: torchvision compares levels one by one
        ("resnet50", 3, (224, 320)),
    ],
)
def test_proposals_are_bit_identical(kind: str, num_images: int, shape: tuple[int, int]) -> None:
    rpn: Any = rpn_without_network(kind)
    outputs = rpn_outputs(kind, num_images, shape)
    with torch.inference_mode():
        boxes, scores = stock_proposals(rpn, outputs)
        (anchors,) = rpn.anchor_generator(
            ImageList(outputs.images.tensors, outputs.images.image_sizes[:1]), outputs.objectness
        )
        found = propose_from(rpn, outputs.objectness, outputs.deltas, anchors, outputs.images.image_sizes)
    for index in range(num_images):
        mine = found.select(found.image_index == index)
        assert torch.equal(mine.scores, scores[index])
        # Among thousands of scores near 1 some are equal, and torchvision leaves their order open.
        ours, theirs = tie_order(mine.scores, mine.boxes), tie_order(scores[index], boxes[index])
        assert torch.equal(mine.boxes[ours], boxes[index][theirs])


@pytest.mark.parametrize("threshold", [0.01, 0.05, 0.3])
@pytest.mark.parametrize(("num_images", "per_image", "num_classes"), [(1, 150, 91), (4, 1000, 91), (3, 100, 2)])
def test_detections_are_bit_identical(num_images: int, per_image: int, num_classes: int, threshold: float) -> None:
    heads = roi_heads_without_network()
    heads.score_thresh = threshold
    sizes = [(400 - 7 * index, 600) for index in range(num_images)]
    logits, codes, proposals = region_outputs(per_image, num_images, num_classes, (400, 600))
    with torch.inference_mode():
        boxes, scores, labels = heads.postprocess_detections(
            logits, codes, list(proposals.boxes.split(per_image)), sizes
        )
        found = postprocess(heads, logits, codes, proposals, sizes)
    for index in range(num_images):
        mine = found.select(found.image_index == index)
        assert torch.equal(mine.scores, scores[index])
        assert torch.equal(mine.labels, labels[index])
        assert torch.equal(mine.boxes, boxes[index])
        assert bool(found.capped[index]) == (len(mine) == heads.detections_per_img)


def test_images_without_proposals_are_empty() -> None:
    heads = roi_heads_without_network()
    logits, codes, proposals = region_outputs(10, 2, 4, (100, 100))
    none = torch.zeros(0, dtype=torch.int64)
    found = postprocess(heads, logits[none], codes[none], proposals.select(none), [(100, 100)] * 2)
    assert len(found) == 0
    assert found.capped.tolist() == [False, False]
