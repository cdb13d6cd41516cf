from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from batchdet.training.loss_config import LossConfig, RCNNRules
from batchdet.training.rcnn_loss import draw_sample, rcnn_terms, roi_stage, rpn_stage
from batchdet.training.targets import Target
from tests.training.made import scene, small_rcnn, stock_targets, target

RULES = LossConfig()
FEW = LossConfig(rcnn=RCNNRules(rpn_anchors=32, roi_samples=32))
"""So few that not every anchor and proposal is drawn."""
OBJECT = [0.0, 0.0, 20.0, 20.0]


def losses(
    model: Any, pictures: Sequence[Tensor], targets: Sequence[Target], rules: LossConfig = RULES
) -> dict[str, Tensor]:
    terms = rcnn_terms(model, pictures, targets, rules)
    return {name: term.total.detach() / max(1, int(term.count)) for name, term in terms.items()}


def shifted(*shifts: float) -> Tensor:
    """Boxes of the object's size, moved to the right: IoU (20 - x) / (20 + x)."""
    return torch.tensor([[x, 0.0, 20.0 + x, 20.0] for x in shifts])


def test_the_losses_are_torchvisions_for_the_same_draws() -> None:
    model = small_rcnn(rpn_batch_size_per_image=32, box_batch_size_per_image=32)
    pictures, targets = scene(3)
    torch.manual_seed(3)
    stock = model([*pictures], stock_targets(targets))
    torch.manual_seed(3)
    ours = losses(model, pictures, targets, FEW)
    assert list(ours) == list(stock)
    for name, value in stock.items():
        torch.testing.assert_close(ours[name], value, rtol=2e-6, atol=0, msg=name)


def test_a_seed_draws_the_same_wherever_torchs_generator_stands() -> None:
    references = torch.cat([shifted(*[0.0] * 600), shifted(*[500.0] * 900)])
    places = []
    for start, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(start)
        before = torch.get_rng_state()
        places.append(draw_sample(target([OBJECT], seed=seed), references, roi_stage(RCNNRules(), 0.5)).places)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(places[0], places[1])
    assert not torch.equal(places[0], places[2])


@given(st.integers(0, 40), st.integers(0, 400), st.integers(0, 2**20))
def test_the_sampled_ratios(positives: int, negatives: int, seed: int) -> None:
    references = torch.cat([shifted(*[0.0] * positives), shifted(*[500.0] * negatives)]).reshape(-1, 4)
    made = target([OBJECT], seed=seed)
    rules = RCNNRules(rpn_anchors=32, roi_samples=64)
    for stage, most, limit in ((rpn_stage(rules, 0.5), 16, 32), (roi_stage(rules, 0.5), 16, 64)):
        if not len(references) or (stage.number == 1 and not positives):
            continue
        labels = draw_sample(made, references, stage).labels
        expected = min(positives, most)
        assert int((labels > 0).sum()) == expected
        assert int((labels == 0).sum()) == min(negatives, limit - expected)


def test_the_papers_ratios_are_the_defaults() -> None:
    many = torch.cat([shifted(*[0.0] * 600), shifted(*[500.0] * 900)])
    for stage, positives, number in ((rpn_stage(RCNNRules(), 0.5), 128, 256), (roi_stage(RCNNRules(), 0.5), 128, 512)):
        labels = draw_sample(target([OBJECT]), many, stage).labels
        assert (int((labels > 0).sum()), len(labels)) == (positives, number)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (rpn_stage(RCNNRules(), 0.5), {0: 2, 3: 2, 14: 0}),  # IoU 1, 0.74; 0.43 is between; 0.18
        (roi_stage(RCNNRules(), 0.5), {0: 2, 3: 2, 8: 0, 14: 0}),  # no band between: 0.43 is background
        (roi_stage(RCNNRules(roi_background_iou=0.3), 0.5), {0: 2, 3: 2, 14: 0}),
    ],
)
def test_the_bands_of_iou(stage: Any, expected: dict[int, int]) -> None:
    shifts = (0, 3, 8, 14)
    sample = draw_sample(target([OBJECT], [2]), shifted(*shifts), stage)
    assert {shifts[place]: int(label) for place, label in zip(sample.places, sample.labels, strict=True)} == expected


def test_the_best_anchors_of_an_object_are_positive_with_their_ties_but_proposals_are_not() -> None:
    references = shifted(8, -8, 14)
    assert draw_sample(target([OBJECT]), references, rpn_stage(RCNNRules(), 0.5)).labels.tolist() == [1, 1, 0]
    assert draw_sample(target([OBJECT]), references, roi_stage(RCNNRules(), 0.5)).labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize("stage", [rpn_stage(RCNNRules(), 0.5), roi_stage(RCNNRules(), 0.5)])
@pytest.mark.parametrize(
    ("ignored", "expected"),
    [
        ([], {0: 1, 100: 0, 200: 0}),
        ([[100, 0, 120, 20]], {0: 1, 200: 0}),  # a background box on it
        ([[0, 0, 20, 20]], {100: 0, 200: 0}),  # a positive on it
        ([[90, -20, 140, 60]], {0: 1, 200: 0}),  # inside a large one
        ([[300, 0, 320, 20]], {0: 1, 100: 0, 200: 0}),  # touches none
    ],
)
def test_what_lies_on_an_ignored_box_is_never_sampled(
    stage: Any, ignored: list[list[float]], expected: dict[int, int]
) -> None:
    shifts = (0, 100, 200)
    sample = draw_sample(target([OBJECT], ignored=ignored), shifted(*shifts), stage)
    assert {shifts[place]: int(label) for place, label in zip(sample.places, sample.labels, strict=True)} == expected


def test_ignoring_the_whole_picture_leaves_nothing_to_learn() -> None:
    model, (pictures, targets) = small_rcnn(), scene(1)
    whole = [replace(targets[0], ignored=torch.tensor([[0.0, 0.0, 160.0, 120.0]]))]
    terms = rcnn_terms(model, pictures, whole, LossConfig(ignore_overlap=0.01))
    assert {terms[name].total.item() for name in ("loss_classifier", "loss_box_reg")} == {0.0}
    assert int(terms["loss_classifier"].count) == 0


def test_the_box_gradient_of_a_background_region_is_zero() -> None:
    model, (pictures, targets) = small_rcnn(), scene(1)
    codes: list[Tensor] = []
    labels: list[Tensor] = []
    model.roi_heads.box_predictor.bbox_pred.register_forward_hook(lambda *event: codes.append(event[2]))
    model.roi_heads.box_predictor.cls_score.register_forward_hook(lambda *event: labels.append(event[2]))
    term = rcnn_terms(model, pictures, targets, RULES)["loss_box_reg"]
    (gradient,) = torch.autograd.grad(term.total, codes[0])
    learned = gradient.reshape(len(gradient), -1, 4).abs().sum(dim=2) > 0
    assert not learned[:, 0].any()
    assert learned.any(dim=1).sum() < len(learned)
    assert (learned.sum(dim=1) <= 1).all()


def test_a_picture_of_background_has_no_box_loss() -> None:
    model, (pictures, _) = small_rcnn(), scene(1)
    terms = rcnn_terms(model, pictures, [target([])], RULES)
    assert terms["loss_box_reg"].total.item() == terms["loss_rpn_box_reg"].total.item() == 0
    assert terms["loss_classifier"].total.item() > 0


def test_weights_scale_the_losses_of_their_objects_and_pictures() -> None:
    model, (pictures, targets) = small_rcnn(), scene(1)
    seeded = replace(targets[0], seed=5)
    whole = losses(model, pictures, [seeded])
    halved = losses(model, pictures, [replace(seeded, image_weight=0.5)])
    weightless = losses(model, pictures, [replace(seeded, weights=torch.zeros(2))])
    for name, value in whole.items():
        torch.testing.assert_close(halved[name], 0.5 * value)
        assert weightless[name] < value
    assert weightless["loss_box_reg"] == weightless["loss_rpn_box_reg"] == 0
