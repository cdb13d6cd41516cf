"""Law 4: fed the same pixels, every architecture gives stock torchvision's rows."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchdet.engine.detections import Detections
from batchdet.engine.families import FAMILIES
from tests.engine.outputs import tie_order
from tests.engine.seeded import TWO_SIZES, batch_of, eager_networks, pictures, seeded_model

SMALL: dict[str, dict[str, Any]] = {
    "ssd300_vgg16": {},
    "ssdlite320_mobilenet_v3_large": {},
    "fasterrcnn_mobilenet_v3_large_320_fpn": {},
    "fasterrcnn_mobilenet_v3_large_fpn": {"min_size": 160, "max_size": 256, "rpn_post_nms_top_n_test": 200},
    "fasterrcnn_resnet50_fpn": {"min_size": 96, "max_size": 160, "rpn_post_nms_top_n_test": 200},
    "fasterrcnn_resnet50_fpn_v2": {"min_size": 96, "max_size": 128, "rpn_post_nms_top_n_test": 60},
}
"""Every architecture, with inputs and proposals few enough for a quick forward pass."""


@cache
def small_model(architecture: str) -> nn.Module:
    return seeded_model(architecture, **SMALL[architecture])


def detect_above(architecture: str, model: nn.Module, images: list[Tensor], floor: float) -> Detections:
    """Our rows with the floor pushed into the model."""
    family = FAMILIES[architecture]
    thresholds = family.thresholds(model)
    default, thresholds.score_thresh = thresholds.score_thresh, floor
    try:
        with torch.inference_mode():
            return family.detect(model, eager_networks(architecture, model), batch_of(model, images))
    finally:
        thresholds.score_thresh = default


def assert_rows(found: Detections, stock: list[dict[str, Tensor]], floor: float) -> None:
    """Ours equal stock's at its own threshold, those above the floor; equal scores may swap."""
    for index, expected in enumerate(stock):
        rows = {name: column[expected["scores"] > floor] for name, column in expected.items()}
        mine = found.select(found.image_index == index)
        torch.testing.assert_close(mine.scores, rows["scores"], rtol=0, atol=1e-5)
        ours, theirs = tie_order(mine.scores, mine.boxes), tie_order(rows["scores"], rows["boxes"])
        assert mine.labels[ours].tolist() == rows["labels"][theirs].tolist()
        torch.testing.assert_close(mine.boxes[ours], rows["boxes"][theirs], rtol=0, atol=1e-3)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_rows_equal_stock_at_any_floor(architecture: str) -> None:
    model, images = small_model(architecture), pictures(*TWO_SIZES)
    with torch.inference_mode():
        stock = model(images)
    for floor in (0.05, 0.4):
        found = detect_above(architecture, model, images, floor)
        assert len(found) >= 60, "too few detections to prove anything"
        assert_rows(found, stock, floor)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FAMILIES)
def test_rows_equal_stock_at_full_size(architecture: str) -> None:
    model = seeded_model(architecture, num_classes=91, seed=3)
    images = pictures((480, 640), seed=9)
    with torch.inference_mode():
        stock = model(images)
    found = detect_above(architecture, model, images, 0.05)
    assert len(found) >= 100
    assert_rows(found, stock, 0.05)


def test_first_picture_a_model_sees_changes_no_later_one() -> None:
    """torchvision's pooler keeps the scales it infers from the first shapes it sees, and a sliver misleads it."""
    architecture = "fasterrcnn_mobilenet_v3_large_320_fpn"
    model: Any = small_model(architecture)
    images, sliver = pictures((120, 160)), pictures((20, 600))
    expected = detect_above(architecture, model, images, 0.05)
    model.roi_heads.box_roi_pool.scales = None
    detect_above(architecture, model, sliver, 0.05)
    found = detect_above(architecture, model, images, 0.05)
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)
