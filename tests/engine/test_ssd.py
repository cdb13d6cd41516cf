"""SSD's vectorised pass against `SSD.postprocess_detections`, bit for bit."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet.engine import host_steps
from batchdet.engine.detections import Detections
from batchdet.engine.ssd import HeadOutputs, postprocess
from batchdet.engine.steps import DEVICE, HOST, Steps
from tests.engine.outputs import ssd_outputs, ssd_without_network
from tests.engine.work import Work


def assert_same(one: Detections, other: Detections) -> None:
    for name in ("boxes", "scores", "labels", "image_index", "capped", "finite"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def assert_identical(model: Any, outputs: HeadOutputs) -> Detections:
    """Every image's boxes, scores, labels and their order equal torchvision's, on the host and as on a device."""
    count = len(outputs.logits)
    sizes = [(model.transform.fixed_size[0],) * 2] * count
    heads = {"bbox_regression": outputs.offsets, "cls_logits": outputs.logits}
    with torch.inference_mode():
        stock = model.postprocess_detections(heads, [outputs.default_boxes] * count, sizes)
        found = postprocess(outputs, sizes, model, HOST)
        assert_same(postprocess(outputs, sizes, model, DEVICE), found)
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


@pytest.mark.parametrize("steps", [HOST, DEVICE], ids=["host", "device"])
def test_nothing_above_the_threshold_is_an_empty_batch(steps: Steps) -> None:
    model = ssd_without_network("ssdlite320", 5)
    outputs = ssd_outputs(model, "ssdlite320", 2, 5)
    silent = HeadOutputs(outputs.offsets, torch.zeros_like(outputs.logits), outputs.default_boxes)
    model.score_thresh = 0.5
    found = postprocess(silent, [(320, 320)] * 2, model, steps)
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


LOGITS = (-1e4, -3.0, 0.0, 1.0, 2.5, 9.0, 9.0, 3e3, 1e4, float("nan"), float("inf"), -float("inf"))


@settings(max_examples=60, deadline=None)
@given(
    num_images=st.integers(1, 3),
    num_classes=st.sampled_from([2, 5, 34, 70]),
    threshold=st.sampled_from([0.01, 0.3, 0.5, 0.9]),
    odd=st.integers(0, 40),
    finite=st.booleans(),
    limits=st.sampled_from([(1, 1), (7, 3), (400, 200)]),
    few=st.sampled_from([0, host_steps.FEW_NUMBERS]),
    seed=st.integers(0, 2**31),
)
def test_odd_heads_give_the_same_on_host_and_device_and_sound_ones_torchvisions(
    num_images: int,
    num_classes: int,
    threshold: float,
    odd: int,
    finite: bool,
    limits: tuple[int, int],
    few: int,
    seed: int,
) -> None:
    """Huge and equal logits, flat rows, numbers that are none, caps that bite everywhere or nowhere."""
    generator = torch.Generator().manual_seed(seed)
    model = ssd_without_network("ssdlite320", num_classes)
    model.score_thresh, (model.topk_candidates, model.detections_per_img) = threshold, limits
    count = 60
    corner = torch.rand(count, 2, generator=generator) * 200
    defaults = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 100 + 1], dim=1)
    logits = torch.randn(num_images, count, num_classes, generator=generator) * 3
    values = torch.tensor(LOGITS[: 9 if finite else len(LOGITS)])
    places = torch.randint(0, logits.numel(), (odd,), generator=generator)
    logits.view(-1)[places] = values[torch.randint(0, len(values), (odd,), generator=generator)]
    logits[0, : odd // 4] = logits[0, 0]
    offsets = torch.randn(num_images, count, 4, generator=generator)
    outputs, sizes = HeadOutputs(offsets, logits, defaults), [(320, 320)] * num_images
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_steps, "FEW_NUMBERS", few)
        found = postprocess(outputs, sizes, model, HOST)
    assert_same(postprocess(outputs, sizes, model, DEVICE), found)
    assert found.finite.tolist() == logits.flatten(1).isfinite().all(dim=1).tolist()
    alone = model.postprocess_detections({"bbox_regression": offsets, "cls_logits": logits}, [defaults] * 3, sizes)
    scores = logits.softmax(dim=-1)[..., 1:]
    for index in found.finite.nonzero().flatten().tolist():
        rivals = scores[index][scores[index] > threshold]
        if len(rivals.unique()) < len(rivals):
            continue  # Which of equal scores a cap leaves torchvision does not say.
        mine = found.select(found.image_index == index)
        assert torch.equal(mine.scores, alone[index]["scores"])
        assert torch.equal(mine.boxes, alone[index]["boxes"])


@pytest.mark.parametrize("kind", ["ssd300", "ssdlite320"])
@pytest.mark.parametrize("threshold", [0.01, 0.3])
@pytest.mark.parametrize("num_images", [1, 8, 32, 128])
def test_work_on_a_device_does_not_grow_with_the_batch(kind: str, threshold: float, num_images: int) -> None:
    """Counted on the CPU, on made heads of 31 classes with few objects; over 8 images the same ones come again."""
    model = ssd_without_network(kind, 31)
    model.score_thresh = threshold
    some = ssd_outputs(model, kind, min(num_images, 8), 31)
    times = num_images // len(some.logits)
    outputs = HeadOutputs(some.offsets.repeat(times, 1, 1), some.logits.repeat(times, 1, 1), some.default_boxes)
    with torch.no_grad(), Work() as work:
        found = postprocess(outputs, [model.transform.fixed_size] * num_images, model, DEVICE)
    assert len(found) > 4 * num_images
    assert work.launches.total() <= 150, work.launches
    assert work.waits.total() <= 8, work.waits
