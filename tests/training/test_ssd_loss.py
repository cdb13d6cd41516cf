from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from batchdet.engine.anchors import reference_boxes
from batchdet.training.loss_config import LossConfig, SSDRules
from batchdet.training.ssd_loss import assign, hardest, ssd_terms
from batchdet.training.targets import Inputs, Target, make_inputs
from tests.engine.seeded import seeded_model
from tests.training.made import scene, small_ssd, still, stock_targets, target

RULES = LossConfig()
SQUARES = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 10], [40, 0, 50, 10], [80, 0, 90, 10]], dtype=torch.float32)
"""Default boxes: two alike, and two by themselves."""


def losses(model: Any, pictures: Sequence[Tensor], targets: Sequence[Target], rules: LossConfig = RULES) -> Tensor:
    terms = ssd_terms(model, pictures, targets, rules)
    return torch.stack([term.total / max(1, int(term.count)) for term in terms.values()])


def test_the_losses_are_torchvisions() -> None:
    model, (pictures, targets) = small_ssd(), scene(3)
    stock = model([*pictures], stock_targets(targets))
    ours = losses(model, pictures, targets)
    assert list(stock) == ["bbox_regression", "classification"]
    torch.testing.assert_close(ours, torch.stack([*stock.values()]), rtol=1e-6, atol=0)


def test_the_gradients_are_torchvisions() -> None:
    # Heads whose outputs differ: among equals either may be the hardest.
    model, (pictures, targets) = still(seeded_model("ssdlite320_mobilenet_v3_large", num_classes=4)), scene()
    gradients = []
    for total in (sum(model([*pictures], stock_targets(targets)).values()), losses(model, pictures, targets).sum()):
        model.zero_grad()
        total.backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, [0, 0, -1, -1]), (0.95, [0, -1, -1, -1])])
def test_the_best_default_box_and_every_one_over_the_threshold_match(threshold: float, expected: list[int]) -> None:
    rules = LossConfig(ssd=SSDRules(match_iou=threshold))
    matched, used = assign(target([[0, 0, 10, 9]]), SQUARES, rules)
    assert matched.tolist() == expected
    assert used.all()


def test_of_two_objects_with_one_best_default_box_the_later_has_it() -> None:
    # Liu et al. leave the tie open; torchvision's matcher lets the later object win.
    matched, _ = assign(target([[40, 0, 50, 2], [40, 0, 50, 4]]), SQUARES, RULES)
    assert matched.tolist() == [-1, -1, 1, -1]


def test_an_object_without_a_default_box_over_the_threshold_has_its_best_one() -> None:
    matched, _ = assign(target([[80, 0, 84, 2]]), SQUARES, RULES)
    assert matched.tolist() == [-1, -1, -1, 0]


def test_only_positives_have_a_box_loss() -> None:
    model, (pictures, targets) = small_ssd(), scene(1)
    inputs = make_inputs(model, pictures, targets)
    with fixed_outputs(model.head.regression_head, model, inputs) as offsets:
        term = ssd_terms(model, pictures, targets, RULES)["bbox_regression"]
    (gradient,) = torch.autograd.grad(term.total, offsets)
    maps = list(model.backbone(inputs.batch.pixels).values())
    default_boxes = reference_boxes(model.anchor_generator, inputs.batch.pixels, maps)
    matched, _ = assign(inputs.targets[0], default_boxes, RULES)
    assert torch.equal(gradient[0].abs().sum(dim=1) > 0, matched >= 0)
    assert int((matched >= 0).sum()) == int(term.count) > 0


@contextmanager
def fixed_outputs(head: Any, model: Any, inputs: Inputs) -> Iterator[Tensor]:
    """What a head gives, held fast as a leaf, so that gradients by default box can be asked for."""
    leaf = head(list(model.backbone(inputs.batch.pixels).values())).detach().requires_grad_()
    head.forward = lambda _: leaf
    try:
        yield leaf
    finally:
        del head.forward


@given(st.integers(0, 6), st.floats(0, 4), st.integers(0, 5), st.integers(0, 2**20))
def test_the_mined_ratio(positives: int, ratio: float, least: int, seed: int) -> None:
    losses = torch.rand(40, generator=torch.Generator().manual_seed(seed))
    candidates = torch.arange(40) >= positives
    wanted = max(least, torch.tensor(ratio * positives).ceil().int().item())
    mined = hardest(losses, candidates, wanted)
    assert len(mined) == min(wanted, 40 - positives)
    assert candidates[mined].all()
    rest = candidates.clone()
    rest[mined] = False
    assert not len(mined) or losses[mined].min() >= losses[rest].max()


def test_three_negatives_are_mined_for_a_positive() -> None:
    model, (pictures, targets) = small_ssd(), scene(1)
    counted = {
        ratio: _num_classified(model, pictures, targets, SSDRules(negatives_per_positive=ratio)) for ratio in (3, 0)
    }
    assert counted[0] > 0
    assert counted[3] == 4 * counted[0]
    empty = [target([])]
    assert _num_classified(model, pictures, empty, SSDRules()) == 0
    assert _num_classified(model, pictures, empty, SSDRules(min_negatives=7)) == 7


def _num_classified(model: Any, pictures: list[Tensor], targets: list[Target], rules: SSDRules) -> int:
    """Default boxes in the classification loss: those whose logits get a gradient."""
    inputs = make_inputs(model, pictures, targets)
    with fixed_outputs(model.head.classification_head, model, inputs) as logits:
        total = ssd_terms(model, pictures, targets, LossConfig(ssd=rules))["classification"].total
    (gradient,) = torch.autograd.grad(total, logits)
    return int((gradient.abs().sum(dim=2) > 0).sum())


@pytest.mark.parametrize(
    ("objects", "ignored", "matched", "used"),
    [
        ([[0, 0, 10, 10]], [[0, 0, 10, 10]], [-1, -1, -1, -1], [0, 0, 1, 1]),
        ([[0, 0, 10, 10]], [[40, 0, 50, 10]], [0, 0, -1, -1], [1, 1, 0, 1]),
        ([], [[40, 0, 50, 5]], [-1, -1, -1, -1], [1, 1, 0, 1]),
        ([], [[40, 0, 42, 2]], [-1, -1, -1, -1], [1, 1, 0, 1]),  # its best default box
        ([], [[35, -10, 60, 20]], [-1, -1, -1, -1], [1, 1, 0, 1]),  # lies on it, IoU 0.13
        ([], [[60, 60, 70, 70]], [-1, -1, -1, -1], [1, 1, 1, 1]),
    ],
)
def test_what_lies_on_an_ignored_box_is_in_no_loss(
    objects: list[list[float]], ignored: list[list[float]], matched: list[int], used: list[int]
) -> None:
    got, in_loss = assign(target(objects, ignored=ignored), SQUARES, RULES)
    assert (got.tolist(), in_loss.int().tolist()) == (matched, used)


def test_ignoring_the_whole_picture_leaves_nothing_to_learn() -> None:
    model, (pictures, targets) = small_ssd(), scene(1)
    whole = [replace(targets[0], ignored=torch.tensor([[0.0, 0.0, 160.0, 120.0]]))]
    rules = LossConfig(ssd=SSDRules(min_negatives=100), ignore_overlap=0.01)
    assert losses(model, pictures, whole, rules).tolist() == [0, 0]


def test_weights_scale_the_losses_of_their_objects() -> None:
    model, (pictures, targets) = small_ssd(), scene(1)
    rules = LossConfig(ssd=SSDRules(negatives_per_positive=0))
    weighed = [replace(targets[0], weights=torch.tensor(weights)) for weights in ([1.0, 0.0], [0.0, 1.0], [0.25, 1.0])]
    first, second, mixed = (losses(model, pictures, [one], rules) for one in weighed)
    torch.testing.assert_close(first + second, losses(model, pictures, targets, rules))
    torch.testing.assert_close(0.25 * first + second, mixed)
    assert (first > 0).all()


def test_an_images_weight_scales_all_its_losses() -> None:
    model, (pictures, targets) = small_ssd(), scene(1)
    torch.testing.assert_close(
        losses(model, pictures, [replace(targets[0], image_weight=0.5)]), 0.5 * losses(model, pictures, targets)
    )
