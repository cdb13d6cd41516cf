"""SSD's vectorised pass against `SSD.postprocess_detections`, bit for bit."""

from typing import Any

import pytest
import torch

from batchdet.engine.detections import Detections
from batchdet.engine.ssd import HeadOutputs, postprocess
from tests.engine.outputs import ssd_outputs, ssd_without_network


def assert_identical(model: Any, outputs: HeadOutputs) -> Detections:
    """Every image's boxes, scores, labels and their order equal torchvision's."""
    count = len(outputs.logits)
    sizes = [(model.transform.fixed_size[0],) * 2] * count
    heads = {"bbox_regression": outputs.offsets, "cls_logits": outputs.logits}
    with torch.inference_mode():
        stock = model.postprocess_detections(heads, [outputs.default_boxes] * count, sizes)
        found = postprocess(outputs, sizes, model)
    for index, expected in enumerate(stock):
        mine = found.select(found.image_index == index)
        assert torch.equal(mine.scores, expected["scores"])
        assert torch.equal(mine.labels, expected["labels"])
        assert torch.equal(mine.boxes, expected["boxes"])
    return found


@pytest.mark.parametrize("kind", ["ssd300", "ssdlite320"])
@pytest.mark.parametrize(
    ("num_images", "num_classes", "background", "threshold"),
    [
        (1, 91, 8.0, 0.05),
        (3, 91, 8.0, 0.01),  # over 1,000 boxes an image: torchvision compares them unshifted
        (5, 91, 8.0, 0.3),
        (2, 21, 6.0, 0.05),
        (2, 2, 11.0, 0.05),  # one category
        (1, 91, 3.0, 0.9),  # hardly anything
    ],
)
def test_pass_is_bit_identical(
    kind: str, num_images: int, num_classes: int, background: float, threshold: float
) -> None:
    model = ssd_without_network(kind, num_classes)
    model.score_thresh = threshold
    assert_identical(model, ssd_outputs(model, kind, num_images, num_classes, background))


def test_top_k_of_every_class_is_bit_identical_when_everything_passes() -> None:
    model = ssd_without_network("ssdlite320", 31)
    found = assert_identical(model, ssd_outputs(model, "ssdlite320", 2, 31, background=1.0))
    assert found.capped.all()


def test_threshold_pushed_down_gives_the_rows_of_the_default_above_it() -> None:
    model = ssd_without_network("ssd300", 91)
    outputs = ssd_outputs(model, "ssd300", 2, 91)
    default = assert_identical(model, outputs)
    model.score_thresh = 0.3
    pushed = assert_identical(model, outputs)
    above = default.select(default.scores > 0.3)
    assert torch.equal(pushed.scores, above.scores)
    assert torch.equal(pushed.boxes, above.boxes)


def test_nothing_above_the_threshold_is_an_empty_batch() -> None:
    model = ssd_without_network("ssdlite320", 5)
    outputs = ssd_outputs(model, "ssdlite320", 2, 5)
    silent = HeadOutputs(outputs.offsets, torch.zeros_like(outputs.logits), outputs.default_boxes)
    model.score_thresh = 0.5
    found = postprocess(silent, [(320, 320)] * 2, model)
    assert len(found) == 0
    assert found.capped.tolist() == [False, False]


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [("detections_per_img", 5, "the cap of an image"), ("topk_candidates", 3, "the cap of a class before NMS")],
)
def test_every_cap_that_bites_is_flagged(limit: str, value: int, reason: str) -> None:
    model = ssd_without_network("ssd300", 91)
    model.score_thresh = 0.3
    outputs = ssd_outputs(model, "ssd300", 2, 91)
    assert not assert_identical(model, outputs).capped.any()
    quiet = outputs.logits.clone()
    quiet[1] = 0.0
    setattr(model, limit, value)
    found = assert_identical(model, HeadOutputs(outputs.offsets, quiet, outputs.default_boxes))
    assert found.capped.tolist() == [True, False], reason


def test_an_image_does_not_depend_on_its_batch() -> None:
    model = ssd_without_network("ssdlite320", 91)
    outputs = ssd_outputs(model, "ssdlite320", 6, 91)
    together = assert_identical(model, outputs)
    for index in range(6):
        alone = HeadOutputs(
            outputs.offsets[index : index + 1], outputs.logits[index : index + 1], outputs.default_boxes
        )
        found = postprocess(alone, [(320, 320)], model)
        mine = together.select(together.image_index == index)
        assert torch.equal(found.boxes, mine.boxes)
        assert torch.equal(found.scores, mine.scores)


def test_equal_scores_keep_the_same_order_in_any_batch() -> None:
    """A flat picture gives every cell the same scores: the order must not depend on how many entries there are."""
    model = ssd_without_network("ssdlite320", 4)
    outputs = ssd_outputs(model, "ssdlite320", 1, 4)
    flat = torch.tensor([0.0, 1.0, 1.0, 1.0]).expand_as(outputs.logits)
    one = postprocess(HeadOutputs(outputs.offsets, flat, outputs.default_boxes), [(320, 320)], model)
    busy = torch.cat([flat, ssd_outputs(model, "ssdlite320", 1, 4, background=0.0).logits])
    two = HeadOutputs(outputs.offsets.repeat(2, 1, 1), busy, outputs.default_boxes)
    both = postprocess(two, [(320, 320)] * 2, model)
    first = both.select(both.image_index == 0)
    assert torch.equal(first.boxes, one.boxes)
    assert torch.equal(first.labels, one.labels)
