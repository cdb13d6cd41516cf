import pytest
import torch
from torchvision.models.detection._utils import Matcher

from batchdet.training.config import PseudoLabelConfig
from batchdet.training.targets import Banded, Target, gold_target, make_inputs, on_ignored, pseudo_target
from tests.training.made import scene, small_rcnn, target

MATCHER = Matcher(0.7, 0.3, allow_low_quality_matches=True)


def test_an_ignored_box_where_a_pseudo_label_is_says_nothing_new() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 4], [5, 5, 5, 9], [50, 0, 60, 10]]).float()
    accepted = torch.tensor([True, False, False, True, False])
    made = pseudo_target(
        boxes, torch.tensor([1, 2, 2, 1, 2]), torch.full((5,), 0.5), Banded(accepted, ~accepted), PseudoLabelConfig()
    )
    assert made.boxes.tolist() == [[0, 0, 10, 10]]  # the one without area is left out
    assert made.ignored.tolist() == [[0, 0, 10, 4], [50, 0, 60, 10]]


def test_crowds_of_gold_are_ignored() -> None:
    boxes, crowds = torch.tensor([[0.0, 0, 5, 5], [3, 3, 3, 8]]), torch.tensor([[9.0, 9, 20, 20]])
    made = gold_target(boxes, torch.tensor([1, 2]), crowds)
    assert (made.labels.tolist(), made.weights.tolist(), made.ignored.tolist()) == ([1], [1.0], [[9, 9, 20, 20]])


@pytest.mark.parametrize(
    ("reference", "is_out"),
    [
        ([0, 0, 10, 10], True),  # the same
        ([2, 2, 4, 4], True),  # within
        ([5, 0, 15, 10], True),  # half of it, IoU 1/3
        ([6, 0, 16, 10], False),  # 0.4 of it, IoU 1/4
        ([0, 0, 17, 17], True),  # around it, IoU 0.35
        ([0, 0, 30, 30], False),  # around it, IoU 0.11
        ([40, 0, 50, 10], False),  # beside it
    ],
)
def test_what_lies_on_an_ignored_box(reference: list[float], is_out: bool) -> None:
    references = torch.tensor([[0, 0, 10, 10], reference]).float()
    assert on_ignored(MATCHER, torch.tensor([[0.0, 0, 10, 10]]), references, 0.5).tolist() == [True, is_out]


def test_an_ignored_box_that_nothing_touches_takes_out_nothing() -> None:
    assert not on_ignored(MATCHER, torch.tensor([[90.0, 90, 95, 95]]), torch.tensor([[0.0, 0, 10, 10]]), 0.5).any()


def test_boxes_and_ignored_boxes_are_resized_with_the_picture() -> None:
    pictures, _ = scene(1)
    made = target([[10, 20, 30, 40]], ignored=[[80, 60, 160, 120]])
    inputs = make_inputs(small_rcnn(), pictures, [made])
    factor = 128 / 120
    torch.testing.assert_close(inputs.targets[0].boxes, made.boxes * factor, rtol=1e-2, atol=0)
    torch.testing.assert_close(inputs.targets[0].ignored, made.ignored * factor, rtol=1e-2, atol=0)
    assert inputs.batch.original_sizes == ((120, 160),)


def test_bytes_and_fractions_are_the_same_picture() -> None:
    model, made = small_rcnn(), target([])
    picture = (scene(1)[0][0] * 255).round().to(torch.uint8)
    one, other = (make_inputs(model, [form], [made]).batch.pixels for form in (picture, picture.float() / 255))
    assert torch.equal(one, other)


def test_columns_must_fit() -> None:
    with pytest.raises(ValueError, match="expected boxes"):
        Target(torch.zeros(2, 4), torch.ones(1, dtype=torch.int64), torch.ones(1), torch.zeros(0, 4))
