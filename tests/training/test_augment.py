import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from batchdet.training.augment import change
from batchdet.training.targets import Target
from batchdet.training.view_config import STRONG, ViewConfig
from tests.training.made import target

HEIGHT, WIDTH = 60, 80
STILL = ViewConfig(flip=0.0)
COLOURS = torch.tensor([[200, 10, 10], [10, 200, 10], [10, 10, 200]], dtype=torch.uint8)
BOXES = [[4.0, 6.0, 24.0, 30.0], [40.0, 20.0, 74.0, 50.0]]
IGNORED = [[30.0, 2.0, 38.0, 14.0]]


def painted() -> tuple[Tensor, Target]:
    """Grey, each box filled with a colour of its own: boxes can be found again in the pixels."""
    picture = torch.full((3, HEIGHT, WIDTH), 90, dtype=torch.uint8)
    for box, colour in zip(BOXES + IGNORED, COLOURS, strict=True):
        x0, y0, x1, y1 = map(int, box)
        picture[:, y0:y1, x0:x1] = colour[:, None, None]
    return picture, target(BOXES, [1, 2], [0.9, 0.6], IGNORED)


def extents(picture: Tensor) -> list[list[float] | None]:
    """Where each colour is."""
    found: list[list[float] | None] = []
    for colour in COLOURS:
        ys, xs = np.nonzero((picture == colour[:, None, None]).all(dim=0).numpy())
        found.append([xs.min(), ys.min(), xs.max() + 1.0, ys.max() + 1.0] if len(xs) else None)
    return found


@given(st.integers(0, 2**32), st.sampled_from([ViewConfig(zoom=(0.4, 3.0)), ViewConfig(iou_crop=1.0), STRONG]))
def test_boxes_stay_on_what_they_mark(seed: int, rules: ViewConfig) -> None:
    view = change(*painted(), rules, 1.0, seed)
    marks = extents(view.plain)
    for box, label, weight in zip(view.target.boxes.tolist(), view.target.labels, view.target.weights, strict=True):
        place = int(label) - 1
        assert weight == pytest.approx([0.9, 0.6][place])
        assert box == marks[place]
    kept = {int(label) - 1 for label in view.target.labels}
    rest = sorted(mark for place, mark in enumerate(marks) if mark is not None and place not in kept)
    assert sorted(view.target.ignored.tolist()) == rest


@given(st.integers(0, 2**32))
def test_a_seed_gives_one_view_whatever_torchs_generator_does(seed: int) -> None:
    torch.manual_seed(seed % 7)
    before = torch.get_rng_state()
    first, second = (change(*painted(), STRONG, 1.0, seed) for _ in range(2))
    assert torch.equal(first.picture, second.picture)
    assert torch.equal(first.target.boxes, second.target.boxes)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_give_different_views() -> None:
    assert len({change(*painted(), STRONG, 1.0, seed).picture.numpy().tobytes() for seed in range(20)}) > 15


def test_nothing_asked_for_changes_nothing() -> None:
    picture, boxes = painted()
    view = change(picture, boxes, STILL, 1.0, 3)
    assert torch.equal(view.picture, picture)
    assert view.target == boxes


def test_a_flip_mirrors_pixels_and_boxes() -> None:
    picture, boxes = painted()
    view = change(picture, boxes, ViewConfig(flip=1.0), 1.0, 0)
    assert torch.equal(view.picture, picture.flip(-1))
    assert view.target.boxes.tolist() == extents(view.picture)[:2]
    flips = sum(
        not torch.equal(change(picture, boxes, ViewConfig(), 1.0, seed).picture, picture) for seed in range(200)
    )
    assert 60 < flips < 140


@given(st.integers(0, 2**32), st.floats(0.3, 3.0))
def test_a_zoom_shows_that_share_of_the_sides(seed: int, factor: float) -> None:
    view = change(*painted(), ViewConfig(flip=0.0, zoom=(factor, factor)), 1.0, seed)
    assert tuple(view.picture.shape[-2:]) == (round(HEIGHT / factor), round(WIDTH / factor))
    if factor <= 1 - 1 / HEIGHT:
        assert len(view.target.boxes) == 2


def test_zooms_are_drawn_from_the_range() -> None:
    sides = [change(*painted(), ViewConfig(zoom=(0.5, 2.0)), 1.0, seed).picture.shape[-1] for seed in range(300)]
    zooms = [math.log2(WIDTH / side) for side in sides]
    assert -1.05 <= min(zooms) < -0.9
    assert 0.9 < max(zooms) <= 1.05
    assert abs(sum(zooms) / len(zooms)) < 0.15


@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.5, 0.7]))
def test_the_iou_crop_overlaps_an_object_as_drawn(seed: int, overlap: float) -> None:
    rules = ViewConfig(flip=0.0, iou_crop=1.0, iou_crop_overlaps=(overlap,))
    picture, boxes = painted()
    view = change(picture, boxes, rules, 1.0, seed)
    height, width = view.picture.shape[-2:]
    if (height, width) == (HEIGHT, WIDTH):
        return
    assert 0.5 <= width / height <= 2.0
    assert height >= int(0.3 * HEIGHT)
    frame = torch.tensor([[0.0, 0.0, width, height]])
    # The overlap is measured before the object is cut, so that after it is at least as large.
    assert float(box_iou(view.target.boxes, frame).amax()) >= overlap - 1e-6


def test_the_iou_crop_of_a_picture_without_objects_leaves_it() -> None:
    picture, _ = painted()
    assert torch.equal(change(picture, target([]), ViewConfig(flip=0.0, iou_crop=1.0), 1.0, 0).picture, picture)


def test_an_object_cut_at_its_centre_becomes_ignored() -> None:
    picture = torch.zeros(3, 1, 100, dtype=torch.uint8)
    rules = ViewConfig(flip=0.0, zoom=(2.0, 2.0))
    kinds = set()
    for seed in range(50):
        view = change(picture, target([[40.0, 0.0, 60.0, 1.0]]), rules, 0.5, seed)
        assert len(view.target.boxes) + len(view.target.ignored) <= 1
        for kind, boxes in (("object", view.target.boxes), ("ignored", view.target.ignored)):
            for x0, _, x1, _ in boxes.tolist():
                assert x1 - x0 >= 10 if kind == "object" else x1 - x0 <= 10
                kinds.add(kind)
    assert kinds == {"object", "ignored"}


def test_a_box_under_the_shortest_side_is_left_out() -> None:
    rules = ViewConfig(flip=0.0, zoom=(0.9, 0.9))
    assert len(change(*painted(), rules, 21.0, 0).target.boxes) == 1


def test_distortion_changes_colours_only() -> None:
    picture, boxes = painted()
    rules = ViewConfig(flip=0.0, distort=1.0, blur=0.02)
    view = change(picture, boxes, rules, 1.0, 1)
    assert torch.equal(view.plain, picture)
    assert view.picture.shape == picture.shape
    assert view.picture.dtype == torch.uint8
    assert not torch.equal(view.picture, picture)
    assert view.target == boxes


def test_brightness_is_drawn_from_its_range() -> None:
    picture = torch.full((3, 20, 20), 100, dtype=torch.uint8)
    rules = ViewConfig(flip=0.0, distort=0.5, brightness=0.4, contrast=0.0, saturation=0.0, hue=0.0)
    levels = [int(change(picture, target([]), rules, 1.0, seed).picture[0, 0, 0]) for seed in range(300)]
    assert 60 <= min(levels) < 70
    assert 130 < max(levels) <= 140
    assert 100 < levels.count(100) < 200


def test_a_picture_of_one_pixel_survives() -> None:
    dot = torch.zeros(3, 1, 1, dtype=torch.uint8)
    for seed in range(30):
        assert change(dot, target([[0.0, 0.0, 1.0, 1.0]]), STRONG, 1.0, seed).picture.numel()
