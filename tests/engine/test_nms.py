"""NMS of a whole batch against torchvision's own, image by image and group by group."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from batchdet.engine import nms
from batchdet.engine.candidates import any_per_image, best_first, rank_in_segment


def random_boxes(count: int, side: float, generator: torch.Generator) -> Tensor:
    corner = torch.rand(count, 2, generator=generator) * side
    size = torch.rand(count, 2, generator=generator) * side * 0.4 + 0.01
    return torch.cat([corner, corner + size], dim=1)


def random_entries(counts: list[int], groups: int, side: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, scores without ties, groups and images, sorted as `batched_nms` wants them."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    images = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))
    scores = (torch.randperm(total, generator=generator) + 1).float() / (total + 1)
    labels = torch.randint(0, groups, (total,), generator=generator)
    order = best_first(images, scores)
    return random_boxes(total, side, generator), scores[order], labels, images


def stock_keep(boxes: Tensor, scores: Tensor, labels: Tensor, images: Tensor, threshold: float) -> Tensor:
    """torchvision's `batched_nms`, one image after the other."""
    keep = torch.zeros(len(boxes), dtype=torch.bool)
    for image in images.unique():
        (places,) = torch.where(images == image)
        kept = torchvision.ops.batched_nms(boxes[places], scores[places], labels[places], threshold)
        keep[places[kept]] = True
    return keep


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    groups=st.integers(1, 6),
    side=st.sampled_from([1.0, 100.0, 1333.0]),
    threshold=st.sampled_from([0.0, 0.3, 0.45, 0.5, 0.55, 0.7, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_batch_equals_torchvision_image_by_image(
    counts: list[int], groups: int, side: float, threshold: float, seed: int
) -> None:
    entries = random_entries(counts, groups, side, seed)
    assert torch.equal(nms.batched_nms(*entries, threshold), stock_keep(*entries, threshold))


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    threshold=st.sampled_from([0.0, 0.3, 0.45, 0.5, 0.55, 0.7, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_sweep_equals_torchvision_segment_by_segment(counts: list[int], threshold: float, seed: int) -> None:
    boxes, scores, _, segments = random_entries(counts, 1, 200.0, seed)
    expected = torch.zeros(len(boxes), dtype=torch.bool)
    for segment in segments.unique():
        (places,) = torch.where(segments == segment)
        expected[places[torchvision.ops.nms(boxes[places], scores[places], threshold)]] = True
    if len(boxes):
        assert torch.equal(nms.sweep_nms(boxes, segments, threshold), expected)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([1000], "the last image torchvision shifts by group"),
        ([1001], "the first image torchvision takes group by group"),
        ([1500, 20, 0, 1200, 1], "crowded and sparse images in one batch"),
    ],
)
def test_crowded_images_equal_torchvision(counts: list[int], reason: str) -> None:
    entries = random_entries(counts, 12, 500.0, seed=1)
    assert torch.equal(nms.batched_nms(*entries, 0.5), stock_keep(*entries, 0.5)), reason


def test_overlaps_at_the_threshold_are_decided_in_torchvisions_coordinates() -> None:
    """IoUs within rounding of the threshold, where a shift by the group decides who stays."""
    generator = torch.Generator().manual_seed(4)
    base = random_boxes(400, 300.0, generator)
    width = base[:, 2] - base[:, 0]
    moved = base.clone()
    moved[:, 0::2] += (width / 3)[:, None]  # IoU of a box and itself moved by a third of its width is 1/2.
    boxes = torch.stack([base, moved], dim=1).reshape(-1, 4)
    labels = torch.arange(400).repeat_interleave(2) + 1
    scores = torch.linspace(1, 0.1, 800)
    images = torch.zeros(800, dtype=torch.int64)
    keep = nms.batched_nms(boxes, scores, labels, images, 0.5)
    assert torch.equal(keep, stock_keep(boxes, scores, labels, images, 0.5))
    raw = nms.sweep_nms(boxes, labels, 0.5)
    assert not torch.equal(keep, raw), "the case must tell the two coordinate systems apart"


def test_pairs_are_compared_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, _, labels, _ = random_entries([700], 3, 50.0, seed=2)
    whole = nms.sweep_nms(boxes, labels, 0.4)
    for chunk in (1, 7, 1000):
        monkeypatch.setitem(nms.CHUNK_PAIRS, "cpu", chunk)
        assert torch.equal(nms.sweep_nms(boxes, labels, 0.4), whole)


def test_rounds_of_any_size_keep_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, _, labels, _ = random_entries([700], 3, 50.0, seed=5)
    expected = nms.sweep_nms(boxes, labels, 0.4)
    for size in (1, 5, 1000):
        monkeypatch.setitem(nms.FIRST_ROUND, "cpu", size)
        assert torch.equal(nms.sweep_nms(boxes, labels, 0.4), expected)


def test_chain_of_suppressions_is_followed_to_its_end() -> None:
    """Each box overlaps the next: every second one stays."""
    left = torch.arange(50).float() * 4
    boxes = torch.stack([left, torch.zeros(50), left + 10, torch.full((50,), 10.0)], dim=1)
    keep = nms.sweep_nms(boxes, torch.zeros(50, dtype=torch.int64), 0.4)
    assert keep.tolist() == [place % 2 == 0 for place in range(50)]


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("wide_first", [True, False])
@pytest.mark.parametrize("alone", [True, False], ids=["settled together", "against those settled before"])
def test_farthest_partner_along_x_is_found(threshold: float, wide_first: bool, alone: bool) -> None:
    """A narrow box at the right end of a wide one: no other pair above the threshold starts so far apart."""
    wide = torch.tensor([500.0, 0.0, 600.0, 50.0])
    narrow = torch.tensor([600.0 - 100 * threshold * 1.001, 0.0, 600.0, 50.0])
    best, last = (wide, narrow) if wide_first else (narrow, wide)
    between = torch.arange(0 if alone else nms.FIRST_ROUND["cpu"]).float()[:, None] * 60 + torch.tensor(
        [0, 100, 5, 105.0]
    )
    boxes = torch.cat([best[None], between, last[None]])
    keep = nms.sweep_nms(boxes, torch.zeros(len(boxes), dtype=torch.int64), threshold)
    assert keep[:-1].all()
    assert not keep[-1]


def test_boxes_without_area_suppress_nothing() -> None:
    boxes = torch.tensor([[5.0, 5.0, 5.0, 9.0]] * 3)
    zeros = torch.zeros(3, dtype=torch.int64)
    assert nms.sweep_nms(boxes, zeros, 0.5).all()
    assert nms.batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), zeros, zeros, 0.5).all()


def test_nothing_stays_nothing() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    assert nms.batched_nms(torch.zeros(0, 4), torch.zeros(0), empty, empty, 0.5).shape == (0,)


def test_equal_scores_keep_their_order() -> None:
    images = torch.tensor([1, 0, 1, 0, 0])
    scores = torch.tensor([0.5, 0.5, 0.9, 0.5, 0.7])
    assert best_first(images, scores).tolist() == [4, 1, 3, 2, 0]


def test_rank_counts_inside_a_segment_in_any_order() -> None:
    assert rank_in_segment(torch.tensor([7, 2, 7, 7, 2, 0])).tolist() == [0, 0, 1, 2, 1, 0]


def test_any_per_image_sees_images_without_entries() -> None:
    flags, images = torch.tensor([False, True, False]), torch.tensor([0, 2, 2])
    assert any_per_image(flags, images, 4).tolist() == [False, False, True, False]
