"""NMS of a whole batch against torchvision's own, image by image and group by group, on the host and as on a device."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from batchdet.engine import device_nms, host_nms
from batchdet.engine.candidates import Candidates, any_per_image
from batchdet.engine.device_steps import best_first
from batchdet.engine.nms import float32_bound
from batchdet.engine.steps import DEVICE, HOST, Steps

both_ways = pytest.mark.parametrize("steps", [HOST, DEVICE], ids=["host", "device"])
Entries = tuple[Tensor, Tensor, Tensor, Tensor]


def random_boxes(count: int, side: float, generator: torch.Generator) -> Tensor:
    corner = torch.rand(count, 2, generator=generator) * side
    size = torch.rand(count, 2, generator=generator) * side * 0.4 + 0.01
    return torch.cat([corner, corner + size], dim=1)


def random_entries(counts: list[int], groups: int, side: float, seed: int) -> Entries:
    """Boxes, scores without ties, groups and images, by image, then from the highest score."""
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


def kept_boxes(steps: Steps, entries: Entries, threshold: float) -> Tensor:
    boxes, scores, labels, images = entries
    left, _ = steps.survivors(Candidates(boxes, scores, labels, images), int(images.max()) + 1, threshold, len(boxes))
    return left.boxes


@both_ways
@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    groups=st.integers(1, 6),
    side=st.sampled_from([1.0, 100.0, 1333.0]),
    threshold=st.sampled_from([0.0, 0.3, 0.45, 0.5, 0.55, 0.7, 1.0]),
    few=st.sampled_from([0, 30, 300]),
    seed=st.integers(0, 2**31),
)
def test_batch_equals_torchvision_image_by_image(
    steps: Steps, counts: list[int], groups: int, side: float, threshold: float, few: int, seed: int
) -> None:
    entries = random_entries(counts, groups, side, seed)
    if sum(counts):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host_nms, "FEW", few)
            assert torch.equal(kept_boxes(steps, entries, threshold), entries[0][stock_keep(*entries, threshold)])


@both_ways
@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    threshold=st.sampled_from([0.0, 0.3, 0.45, 0.5, 0.55, 0.7, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_sweep_equals_torchvision_segment_by_segment(
    steps: Steps, counts: list[int], threshold: float, seed: int
) -> None:
    boxes, scores, _, segments = random_entries(counts, 1, 200.0, seed)
    expected = torch.zeros(len(boxes), dtype=torch.bool)
    for segment in segments.unique():
        (places,) = torch.where(segments == segment)
        expected[places[torchvision.ops.nms(boxes[places], scores[places], threshold)]] = True
    assert torch.equal(steps.sweep_nms(boxes, segments, threshold), expected)


@both_ways
@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([1000], "the last image torchvision shifts by group"),
        ([1001], "the first image torchvision takes group by group"),
        ([1500, 20, 0, 1200, 1], "crowded and sparse images in one batch"),
    ],
)
def test_crowded_images_equal_torchvision(steps: Steps, counts: list[int], reason: str) -> None:
    entries = random_entries(counts, 12, 500.0, seed=1)
    assert torch.equal(kept_boxes(steps, entries, 0.5), entries[0][stock_keep(*entries, 0.5)]), reason


@both_ways
def test_overlaps_at_the_threshold_are_decided_in_torchvisions_coordinates(steps: Steps) -> None:
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
    keep = stock_keep(boxes, scores, labels, images, 0.5)
    assert torch.equal(kept_boxes(steps, (boxes, scores, labels, images), 0.5), boxes[keep])
    raw = steps.sweep_nms(boxes, labels, 0.5)
    assert not torch.equal(keep, raw), "the case must tell the two coordinate systems apart"


@pytest.mark.parametrize("chunk", [70, 1000])
@pytest.mark.parametrize(("steps", "module"), [(HOST, host_nms), (DEVICE, device_nms)], ids=["host", "device"])
def test_pairs_are_compared_in_chunks(
    steps: Steps, module: object, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, _, labels, _ = random_entries([700], 3, 50.0, seed=2)
    monkeypatch.setattr(host_nms, "CROWDED", 1 << 40)
    monkeypatch.setattr(host_nms, "FEW_PAIRS", 1 << 40)
    whole = steps.sweep_nms(boxes, labels, 0.4)
    monkeypatch.setattr(host_nms, "FEW_PAIRS", 0)
    monkeypatch.setattr(module, "CHUNK_PAIRS", chunk)
    assert torch.equal(steps.sweep_nms(boxes, labels, 0.4), whole)


def test_a_crowd_gives_torchvisions_result() -> None:
    """Most boxes near each other overlap too much, from which the host asks torchvision's kernel instead of pairs."""
    boxes, scores, labels, images = random_entries([3000], 9, 1.0, seed=5)
    corners = random_boxes(4, 100.0, torch.Generator().manual_seed(6)).repeat(750, 1)
    entries = (corners + boxes * 4, scores, labels, images)
    assert torch.equal(kept_boxes(HOST, entries, 0.3), entries[0][stock_keep(*entries, 0.3)])


@both_ways
def test_chain_of_suppressions_is_followed_to_its_end(steps: Steps) -> None:
    """Each box overlaps the next: every second one stays."""
    left = torch.arange(50).float() * 4
    boxes = torch.stack([left, torch.zeros(50), left + 10, torch.full((50,), 10.0)], dim=1)
    keep = steps.sweep_nms(boxes, torch.zeros(50, dtype=torch.int64), 0.4)
    assert keep.tolist() == [place % 2 == 0 for place in range(50)]


@both_ways
@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("wide_first", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_farthest_partner_along_an_axis_is_found(steps: Steps, threshold: float, wide_first: bool, axis: int) -> None:
    """A narrow box at the far end of a wide one: no other pair above the threshold starts so far apart."""
    wide = torch.tensor([500.0, 0.0, 600.0, 50.0])
    narrow = torch.tensor([600.0 - 100 * threshold * 1.001, 0.0, 600.0, 50.0])
    boxes = torch.stack([wide, narrow] if wide_first else [narrow, wide])
    boxes = boxes if axis == 0 else boxes[:, [1, 0, 3, 2]]
    assert steps.sweep_nms(boxes, torch.zeros(2, dtype=torch.int64), threshold).tolist() == [True, False]


@both_ways
def test_boxes_without_area_suppress_nothing(steps: Steps) -> None:
    boxes = torch.tensor([[5.0, 5.0, 5.0, 9.0]] * 3)
    zeros = torch.zeros(3, dtype=torch.int64)
    assert steps.sweep_nms(boxes, zeros, 0.5).all()
    assert len(kept_boxes(steps, (boxes, torch.tensor([0.9, 0.8, 0.7]), zeros, zeros), 0.5)) == 3


@both_ways
def test_nothing_stays_nothing(steps: Steps) -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    left, over = steps.survivors(Candidates(torch.zeros(0, 4), torch.zeros(0), empty, empty), 2, 0.5, 10)
    assert left.boxes.shape == (0, 4)
    assert over.tolist() == [False, False]
    assert steps.sweep_nms(torch.zeros(0, 4), empty, 0.5).shape == (0,)


@given(threshold=st.floats(0, 1))
def test_a_float32_above_the_bound_is_above_the_threshold(threshold: float) -> None:
    bound = np.float32(float32_bound(threshold))
    assert float(bound) <= threshold < float(np.nextafter(bound, np.float32(2)))


def test_equal_scores_keep_their_order() -> None:
    images = torch.tensor([1, 0, 1, 0, 0])
    scores = torch.tensor([0.5, 0.5, 0.9, 0.5, 0.7])
    assert best_first(images, scores).tolist() == [4, 1, 3, 2, 0]


@both_ways
def test_the_best_of_every_segment_stand_inside_the_limit(steps: Steps) -> None:
    segments, scores = torch.tensor([7, 2, 7, 7, 2, 0]), torch.tensor([0.5, 0.9, 0.5, 0.8, 0.1, 0.3])
    below = steps.beyond_limit(segments, scores, 8, 2)
    assert below is not None
    assert below.tolist() == [False, False, True, False, False, False]
    assert steps.beyond_limit(segments, scores, 8, 3) is None


def test_any_per_image_sees_images_without_entries() -> None:
    flags, images = torch.tensor([False, True, False]), torch.tensor([0, 2, 2])
    assert any_per_image(flags, images, 4).tolist() == [False, False, True, False]
