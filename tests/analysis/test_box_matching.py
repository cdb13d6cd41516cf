"""Matching of boxes against plain Python and torchvision."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from batchdet.analysis import box_matching
from batchdet.analysis.box_changes import BOX_CHANGES, find_changes
from batchdet.analysis.box_matching import Boxes, match_boxes, pairwise_iou
from batchdet.analysis.config import CompareConfig
from tests.analysis.matching_oracle import Box, objects

SIDE = st.integers(0, 6)
BOX = st.builds(
    Box,
    st.tuples(SIDE, SIDE, SIDE, SIDE).map(
        lambda s: (min(s[0], s[2]), min(s[1], s[3]), max(s[0], s[2]), max(s[1], s[3]))
    ),
    st.sampled_from([0.5, 0.75, 1.0]),
    st.integers(0, 2),
)
IMAGES = st.lists(st.tuples(st.lists(BOX, max_size=6), st.lists(BOX, max_size=6)), max_size=4)


def columns(images: Sequence[Sequence[Box]]) -> Boxes:
    every = [(owner, place, box) for owner, image in enumerate(images) for place, box in enumerate(image)]
    return Boxes(
        owner=np.array([owner for owner, _, _ in every], np.int64),
        corners=np.array([box.corners for _, _, box in every], np.float64).reshape(-1, 4),
        categories=np.array([box.category for _, _, box in every], np.int64),
        scores=np.array([box.score for _, _, box in every], np.float64),
        places=np.array([place for _, place, _ in every], np.int64),
    )


def found(
    images: Sequence[tuple[Sequence[Box], Sequence[Box]]], config: CompareConfig
) -> list[list[tuple[str, int, int]]]:
    """Kind and position on each side, of every object of every image."""
    before, after = columns([image[0] for image in images]), columns([image[1] for image in images])
    changes = find_changes(before, after, config)
    assert np.all(np.diff(changes.owner) >= 0)
    rows: list[list[tuple[str, int, int]]] = [[] for _ in images]
    for kind, owner, left, right in zip(changes.kind, changes.owner, changes.before, changes.after, strict=True):
        places = (int(before.places[left]) if left >= 0 else -1, int(after.places[right]) if right >= 0 else -1)
        rows[owner].append((BOX_CHANGES[kind], *places))
    return rows


@settings(max_examples=300, deadline=None)
@given(images=IMAGES, threshold=st.sampled_from([0.1, 0.5, 1.0]), moved_px=st.sampled_from([0.0, 1.0]))
def test_objects_are_those_of_plain_python(
    images: list[tuple[list[Box], list[Box]]], threshold: float, moved_px: float
) -> None:
    config = CompareConfig(iou_threshold=threshold, moved_px=moved_px, moved_iou=0.6, rescored_by=0.25)
    assert found(images, config) == [objects(before, after, config) for before, after in images]


@settings(max_examples=50, deadline=None)
@given(images=IMAGES, held=st.integers(1, 9))
def test_how_many_pairs_are_held_changes_nothing(images: list[tuple[list[Box], list[Box]]], held: int) -> None:
    whole = found(images, CompareConfig())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box_matching, "PAIRS_HELD", held)
        assert found(images, CompareConfig()) == whole


def test_iou_is_torchvisions() -> None:
    draw = np.random.default_rng(0)
    corners = draw.uniform(0, 50, (2, 300, 2))
    left, right = np.concatenate([corners, corners + draw.uniform(0.1, 60, corners.shape)], axis=2)
    theirs = box_iou(torch.from_numpy(left), torch.from_numpy(right)).diagonal().numpy()
    assert (theirs > 0.3).any()
    np.testing.assert_allclose(pairwise_iou(left, right), theirs, rtol=1e-12)


def test_every_match_reaches_the_threshold_and_no_free_pair_does() -> None:
    draw = np.random.default_rng(1)
    corners = draw.uniform(0, 60, (2, 200, 2))
    before, after = (
        Boxes(
            owner=np.repeat(np.arange(4), 50),
            corners=np.concatenate([part, part + 30], axis=1),
            categories=draw.integers(0, 3, 200),
            scores=np.full(200, 0.5),
            places=np.tile(np.arange(50), 4),
        )
        for part in corners
    )
    matches = match_boxes(before, after, 0.5)
    iou = box_iou(torch.from_numpy(before.corners), torch.from_numpy(after.corners)).numpy()
    assert len(matches.iou) > 50
    np.testing.assert_allclose(matches.iou, iou[matches.before, matches.after], rtol=1e-12)
    iou[before.owner[:, None] != after.owner[None, :]] = 0
    iou[matches.before, :] = 0
    iou[:, matches.after] = 0
    assert iou.max() < 0.5


UNIT = (0.0, 0.0, 10.0, 10.0)
CASES = [
    ("the same", Box(UNIT, 0.9, 1), Box(UNIT, 0.9, 1), "unchanged"),
    ("a side moved just so far", Box(UNIT, 0.9, 1), Box((0, 0, 10, 11), 0.9, 1), "unchanged"),
    ("a side moved too far", Box((0, 0, 100, 100), 0.9, 1), Box((0, 0, 100, 101.5), 0.9, 1), "moved"),
    ("a small box moved", Box((0, 0, 4, 4), 0.9, 1), Box((0, 0.5, 4, 4.5), 0.9, 1), "moved"),
    ("another score", Box(UNIT, 0.9, 1), Box(UNIT, 0.8, 1), "rescored"),
    ("moved goes before rescored", Box(UNIT, 0.9, 1), Box((0, 0, 10, 12), 0.5, 1), "moved"),
    ("reclassed goes before all", Box(UNIT, 0.9, 1), Box((0, 0, 10, 12), 0.5, 2), "reclassed"),
    ("no area", Box((3, 3, 3, 3), 0.9, 1), Box((3, 3, 3, 3), 0.9, 1), "unchanged"),
]


@pytest.mark.parametrize(("before", "after", "kind"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_kinds(before: Box, after: Box, kind: str) -> None:
    assert found([([before], [after])], CompareConfig()) == [[(kind, 0, 0)]]


def test_a_better_pair_of_another_category_does_not_win() -> None:
    before = [Box(UNIT, 0.9, 1), Box((0, 0, 10, 9), 0.9, 2)]
    after = [Box((0, 0, 10, 8.8), 0.9, 1), Box((0, 0, 10, 9.8), 0.9, 2)]
    config = CompareConfig(moved_iou=0.5, moved_px=5)
    assert found([(before, after)], config) == [[("unchanged", 0, 0), ("unchanged", 1, 1)]]


def test_a_damaged_box_matches_nothing() -> None:
    nan, inf = float("nan"), float("inf")
    damaged = [Box((nan, 0, 1, 1), 0.9, 1), Box((0, 0, inf, inf), 0.9, 1), Box((-inf, -inf, inf, inf), 0.9, 1)]
    kinds = [kind for kind, _, _ in found([(damaged, damaged)], CompareConfig())[0]]
    assert kinds == ["removed"] * 3 + ["added"] * 3
