"""Faster R-CNN's vectorised passes against torchvision's `filter_proposals` and `postprocess_detections`."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.image_list import ImageList

from batchdet.engine.rcnn import postprocess, propose_from
from batchdet.engine.steps import DEVICE, HOST, Steps
from tests.engine.outputs import (
    region_outputs,
    roi_heads_without_network,
    rpn_outputs,
    rpn_without_network,
    stock_proposals,
    tie_order,
)
from tests.engine.test_ssd import assert_same
from tests.engine.work import Work


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
        found = propose_from(rpn, outputs.objectness, outputs.deltas, anchors, outputs.images.image_sizes, HOST)
        device = propose_from(rpn, outputs.objectness, outputs.deltas, anchors, outputs.images.image_sizes, DEVICE)
    assert_same(device, found)
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
        found = postprocess(heads, logits, codes, proposals, sizes, HOST)
        assert_same(postprocess(heads, logits, codes, proposals, sizes, DEVICE), found)
    for index in range(num_images):
        mine = found.select(found.image_index == index)
        assert torch.equal(mine.scores, scores[index])
        assert torch.equal(mine.labels, labels[index])
        assert torch.equal(mine.boxes, boxes[index])
        assert bool(found.capped[index]) == (len(mine) == heads.detections_per_img)


@pytest.mark.parametrize("steps", [HOST, DEVICE], ids=["host", "device"])
def test_images_without_proposals_are_empty(steps: Steps) -> None:
    heads = roi_heads_without_network()
    logits, codes, proposals = region_outputs(10, 2, 4, (100, 100))
    none = torch.zeros(0, dtype=torch.int64)
    found = postprocess(heads, logits[none], codes[none], proposals.select(none), [(100, 100)] * 2, steps)
    assert len(found) == 0
    assert found.capped.tolist() == [False, False]


ODD = (0.0, -0.0, 1.0, 1.0, -50.0, 3e38, float("nan"), float("inf"), -float("inf"))


@settings(max_examples=60, deadline=None)
@given(
    num_images=st.integers(1, 3),
    odd=st.integers(0, 30),
    places=st.sampled_from(["objectness", "deltas"]),
    limit=st.sampled_from([1, 5, 40, 1000]),
    seed=st.integers(0, 2**31),
)
def test_odd_outputs_give_the_same_proposals_on_host_and_device(
    num_images: int, odd: int, places: str, limit: int, seed: int
) -> None:
    """Equal logits, both zeros, numbers that are none: the best come first, equals in the order of anchors."""
    generator = torch.Generator().manual_seed(seed)
    rpn: Any = rpn_without_network("mobilenet320")
    rpn._pre_nms_top_n["testing"] = rpn._post_nms_top_n["testing"] = limit
    shapes = [(3, 4), (2, 2), (1, 1)]
    objectness = [torch.randn(num_images, 3, *shape, generator=generator) for shape in shapes]
    deltas = [torch.randn(num_images, 12, *shape, generator=generator) for shape in shapes]
    target = (objectness if places == "objectness" else deltas)[0].view(-1)
    values = torch.tensor(ODD)[torch.randint(0, len(ODD), (odd,), generator=generator)]
    target[torch.randint(0, len(target), (odd,), generator=generator)] = values
    corner = torch.rand(3 * 17, 2, generator=generator) * 90
    anchors = torch.cat([corner, corner + 20], dim=1)
    sizes = [(100, 100)] * num_images
    found = propose_from(rpn, objectness, deltas, anchors, sizes, HOST)
    assert found.boxes.isfinite().all()
    assert_same(propose_from(rpn, objectness, deltas, anchors, sizes, DEVICE), found)


@pytest.mark.parametrize("steps", [HOST, DEVICE], ids=["host", "device"])
def test_top_anchors_keep_the_order_of_equals(steps: Steps) -> None:
    level = torch.tensor([[[[0.0, 2.0]], [[-0.0, 2.0]], [[-1.0, 0.0]]]])  # 3 kinds, 1 x 2 cells
    codes = torch.arange(24.0).reshape(1, 12, 1, 2)
    top = steps.top_anchors([level], [codes], 5)
    assert top.anchors.tolist() == [[3, 4, 0, 1, 5]]  # (cell, kind) flattened
    assert top.objectness.tolist() == [[2, 2, 0, 0, 0]]
    assert top.codes[0, 1].tolist() == [9, 11, 13, 15]
    assert top.levels == (5,)


HIDDEN = torch.where(torch.arange(3 * 40 * 64) % 16 == 0, -1.0, torch.linspace(0, 1, 3 * 40 * 64))


@pytest.mark.parametrize(
    "values",
    [
        torch.randn(3 * 40 * 64, generator=torch.Generator().manual_seed(5)),
        torch.zeros(3 * 40 * 64),  # equals only: the guess takes all of them
        HIDDEN,  # what is looked at is small, and the guess takes nearly all
        -HIDDEN,  # what is looked at is large, and the guess finds too few
        torch.where(torch.arange(3 * 40 * 64) == 77, torch.nan, HIDDEN),
    ],
    ids=["random", "equal", "hidden", "shown", "nan"],
)
@pytest.mark.parametrize("limit", [5, 300, 5000])
def test_top_anchors_of_a_large_level_are_those_of_a_stable_sort(values: torch.Tensor, limit: int) -> None:
    """However misleading the values are of which a part is looked at first."""
    top = HOST.top_anchors([values.reshape(1, 3, 40, 64)], [torch.zeros(1, 12, 40, 64)], limit)
    by_anchor = values.reshape(3, -1).T.flatten()  # (cell, kind)
    order = torch.argsort(by_anchor.nan_to_num(nan=torch.inf), descending=True, stable=True)
    assert torch.equal(top.anchors[0], order[:limit])


@pytest.mark.parametrize("num_images", [1, 8])
def test_work_for_proposals_on_a_device_does_not_grow_with_the_batch(num_images: int) -> None:
    rpn: Any = rpn_without_network("resnet50")
    outputs = rpn_outputs("resnet50", num_images, (224, 320))
    (anchors,) = rpn.anchor_generator(ImageList(outputs.images.tensors, [(224, 320)]), outputs.objectness)
    for _ in range(2):  # The first call of a shape also fills the tables of its places.
        with torch.no_grad(), Work() as work:
            propose_from(rpn, outputs.objectness, outputs.deltas, anchors, outputs.images.image_sizes, DEVICE)
    assert work.launches.total() <= 190, work.launches
    assert work.waits.total() <= 8, work.waits


@pytest.mark.parametrize("threshold", [0.01, 0.3])
@pytest.mark.parametrize("num_images", [1, 8, 32])
def test_work_for_regions_on_a_device_does_not_grow_with_the_batch(num_images: int, threshold: float) -> None:
    heads = roi_heads_without_network()
    heads.score_thresh = threshold
    logits, codes, proposals = region_outputs(100, num_images, 31, (400, 600))
    with torch.no_grad(), Work() as work:
        postprocess(heads, logits, codes, proposals, [(400, 600)] * num_images, DEVICE)
    assert work.launches.total() <= 160, work.launches
    assert work.waits.total() <= 8, work.waits
