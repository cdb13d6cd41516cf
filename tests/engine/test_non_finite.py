"""A network that gives NaN or infinity fails the image: no such image passes for one without objects."""

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchdet.config import PolicyConfig
from batchdet.engine.backends.backend import Precision
from batchdet.engine.checkpoint import read_input_spec
from batchdet.engine.detector import Batch
from batchdet.engine.pipeline import detect_blocks
from batchdet.engine.postfilter import PostFilter
from batchdet.engine.steps import DEVICE, HOST, Steps
from batchdet.records import (
    FailedImage,
    ImageFacts,
    ImageOutcome,
    ImageRef,
    LabelledImage,
    ModelInfo,
    PreparedBlock,
    PreparedGroup,
)
from tests.engine.seeded import batch_of, eager_detector, pictures, seeded_model

SSDLITE, RCNN = "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"
CATEGORIES = ("__background__", "cat", "dog", "hen", "cow")
NAN, INF = float("nan"), float("inf")


@cache
def stock_model(architecture: str) -> nn.Module:
    return seeded_model(architecture)


def block_of(batch: Batch) -> PreparedBlock:
    count = len(batch.sizes)
    group = PreparedGroup(batch.pixels.numpy(), np.arange(count), np.array(batch.sizes), np.array(batch.original_sizes))
    refs = tuple(ImageRef(f"memory://{place}.jpg") for place in range(count))
    return PreparedBlock(refs, (ImageFacts(),) * count, {}, (group,), {})


def label(architecture: str, model: Any, batch: Batch, precision: Precision = "fp32") -> list[ImageOutcome]:
    info = ModelInfo("made", architecture, CATEGORIES, "sha256:0", read_input_spec(model))
    detector = eager_detector(info, model, precision)
    return list(detect_blocks([block_of(batch)], detector, PostFilter(PolicyConfig(), CATEGORIES)))


def codes_of(outcomes: list[ImageOutcome]) -> list[str]:
    return [o.code if isinstance(o, FailedImage) else "labelled" for o in outcomes]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("architecture", "layer"),
    [
        (SSDLITE, "backbone.features.0.0.0.weight"),
        (SSDLITE, "head.classification_head.module_list.0.1.bias"),
        (SSDLITE, "head.regression_head.module_list.5.1.bias"),
        (RCNN, "backbone.body.0.0.weight"),
        (RCNN, "rpn.head.cls_logits.bias"),
        (RCNN, "rpn.head.bbox_pred.bias"),
        (RCNN, "roi_heads.box_predictor.cls_score.bias"),
        (RCNN, "roi_heads.box_predictor.bbox_pred.bias"),
    ],
)
def test_one_bad_number_in_a_layer_fails_every_image(architecture: str, layer: str, bad: float) -> None:
    model = copy.deepcopy(stock_model(architecture))
    model.get_parameter(layer).data.flatten()[0] = bad
    outcomes = label(architecture, model, batch_of(model, pictures((120, 160))))
    assert codes_of(outcomes) == ["non_finite"]
    assert [o.stage for o in outcomes if isinstance(o, FailedImage)] == ["detect"]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("architecture", [SSDLITE, RCNN])
def test_neighbours_in_the_batch_keep_their_rows(architecture: str, place: int) -> None:
    model: Any = stock_model(architecture)
    batch = batch_of(model, pictures((120, 160), (120, 160), (120, 160)))
    whole = label(architecture, model, batch)
    batch.pixels[place] = NAN
    outcomes = label(architecture, model, batch)
    assert codes_of(outcomes) == ["non_finite" if index == place else "labelled" for index in range(3)]
    for mine, expected in zip(outcomes, whole, strict=True):
        if isinstance(mine, LabelledImage):
            assert isinstance(expected, LabelledImage)
            assert len(mine.scores) > 10, "too few detections to prove anything"
            np.testing.assert_array_equal(mine.scores, expected.scores)
            np.testing.assert_array_equal(mine.labels, expected.labels)
            np.testing.assert_array_equal(mine.boxes, expected.boxes)


@pytest.mark.parametrize("architecture", [SSDLITE, RCNN])
def test_half_precision_that_overflows_fails_the_image(architecture: str) -> None:
    """The everyday cause: activations over 65,504, which float32 holds without trouble."""
    model: Any = copy.deepcopy(stock_model(architecture))
    layer = "head.classification_head.module_list.0.1.bias" if architecture == SSDLITE else "rpn.head.cls_logits.bias"
    model.get_parameter(layer).data += 1e5
    batch = batch_of(model, pictures((120, 160)))
    assert codes_of(label(architecture, model, batch)) == ["labelled"]
    assert codes_of(label(architecture, model, batch, "fp16")) == ["non_finite"]


@pytest.mark.parametrize("steps", [HOST, DEVICE], ids=["host", "device"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 1.0], [NAN, 1.0]], [True, False]),
        ([[INF, 1.0], [1.0, -INF]], [False, False]),
        ([[3.4e38, 3.4e38], [-3.4e38, 0.0]], [True, True]),  # a sum would overflow
    ],
)
def test_all_finite_is_asked_of_every_tensor(steps: Steps, values: list[list[float]], expected: list[bool]) -> None:
    tensor = torch.tensor(values)
    sound = torch.zeros(2, 3, 4)
    assert steps.all_finite(tensor, sound).tolist() == expected
    assert steps.all_finite(sound, tensor).tolist() == expected


@pytest.mark.parametrize("steps", [HOST, DEVICE], ids=["host", "device"])
def test_no_rows_are_no_verdicts(steps: Steps) -> None:
    none: Tensor = torch.zeros(0, 4)
    assert steps.all_finite(none, none).tolist() == []


@pytest.mark.parametrize("steps", [HOST, DEVICE], ids=["host", "device"])
def test_a_bad_number_in_a_row_fails_its_image(steps: Steps) -> None:
    sound, rows_of = torch.zeros(4, 3), torch.tensor([0, 0, 2, 3])
    assert steps.finite_images(rows_of, 4, sound, sound).tolist() == [True] * 4
    bad = sound.clone()
    bad[1, 2], bad[3, 0] = NAN, -INF
    assert steps.finite_images(rows_of, 4, sound, bad).tolist() == [False, True, True, False]
    huge = torch.full((4, 3), 3e38)
    assert steps.finite_images(rows_of, 4, huge).all()
