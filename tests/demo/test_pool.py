"""Batches: whatever is turned and mirrored, the boxes go along."""

import numpy as np
import pytest
import torch

from batchdet.demo.pool import INPUT_SIDE, Pool, draw_pool, make_batch, to_planes


def bright_box_pool(left: int, top: int, right: int, bottom: int) -> Pool:
    pixels = np.zeros((1, INPUT_SIDE, INPUT_SIDE, 3), np.uint8)
    pixels[0, top:bottom, left:right] = 255
    box = np.array([[left, top, right, bottom]], np.float32) / INPUT_SIDE
    return Pool(pixels, (box,), (np.array([3]),))


@pytest.mark.parametrize("side", [INPUT_SIDE, 160])
def test_boxes_go_along_with_every_turn(side: int) -> None:
    pool, rng, seen = bright_box_pool(40, 20, 120, 250), np.random.default_rng(1), set()
    for _ in range(40):
        planes, (target,) = make_batch(pool, np.array([0]), side, rng)
        assert planes.shape == (1, 3, side, side)
        rows, columns = torch.nonzero(planes[0].amax(dim=0) > 0, as_tuple=True)
        extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(target["boxes"][0].numpy(), extent, atol=1)
        assert target["labels"].tolist() == [3]
        seen.add(tuple(target["boxes"][0].round().int().tolist()))
    assert len(seen) == 8, "four sides, each mirrored"


def test_planes_are_normalised_as_ssdlite_wants_them() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (2, INPUT_SIDE, INPUT_SIDE, 3), np.uint8)
    expected = (torch.from_numpy(picture).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    torch.testing.assert_close(to_planes(picture, INPUT_SIDE), expected)


def test_a_pool_is_the_same_whoever_draws_it() -> None:
    alone, together = draw_pool(5, 6, 1), draw_pool(5, 6, 2)
    np.testing.assert_array_equal(alone.pixels, together.pixels)
    for one, other in zip(alone.boxes, together.boxes, strict=True):
        np.testing.assert_array_equal(one, other)
        assert ((one >= 0) & (one <= 1)).all()


def test_an_image_without_objects_has_empty_targets() -> None:
    pool = Pool(
        np.zeros((1, INPUT_SIDE, INPUT_SIDE, 3), np.uint8), (np.zeros((0, 4), np.float32),), (np.zeros(0, np.int64),)
    )
    _, (target,) = make_batch(pool, np.array([0]), INPUT_SIDE, np.random.default_rng(3))
    assert target["boxes"].shape == (0, 4)
