"""Drawn scenes: the same for the same seed, and the truth lies where the pixels say."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

from batchdet.demo.scenes import DEFAULT_STYLE, Scene, draw_picture, draw_scene, draw_scenes
from batchdet.demo.shapes import SHAPES, Points, outline

SEED = 7
CLEAN = replace(DEFAULT_STYLE, blur=(0.0, 0.0), noise=(0.0, 0.0), empty_share=0.0)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return list(draw_scenes(SEED, 60))


def upright(scene: Scene) -> Image.Image:
    with Image.open(io.BytesIO(scene.data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def test_same_seed_same_bytes_whatever_the_count(scenes: list[Scene]) -> None:
    again = list(draw_scenes(SEED, 12))
    assert [scene.data for scene in again] == [scene.data for scene in scenes[:12]]
    assert [scene.name for scene in again] == [scene.name for scene in scenes[:12]]
    for first, second in zip(scenes, again, strict=False):
        np.testing.assert_array_equal(first.boxes, second.boxes)


def test_a_scene_can_be_drawn_alone(scenes: list[Scene]) -> None:
    assert draw_scene(SEED, 9).data == scenes[9].data


def test_another_seed_is_another_world(scenes: list[Scene]) -> None:
    assert all(other.data != scene.data for other, scene in zip(draw_scenes(SEED + 1, 8), scenes, strict=False))


def test_truth_is_inside_the_image(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.boxes.shape == (len(scene.labels), 4)
        assert scene.boxes.dtype == np.float32
        assert (scene.boxes[:, :2] >= 0).all()
        assert (scene.boxes[:, 2:] <= [scene.width, scene.height]).all()
        assert (scene.boxes[:, 2:] - scene.boxes[:, :2] >= 16).all()
        assert np.isin(scene.labels, range(1, len(SHAPES) + 1)).all()


def test_stored_size_is_the_size_after_exif(scenes: list[Scene]) -> None:
    assert all(upright(scene).size == (scene.width, scene.height) for scene in scenes)


def test_the_world_has_its_variety(scenes: list[Scene]) -> None:
    assert {int(label) for scene in scenes for label in scene.labels} == set(range(1, len(SHAPES) + 1))
    assert {scene.name.rpartition(".")[2] for scene in scenes} == {"jpg", "png", "webp"}
    assert any(len(scene.labels) == 0 for scene in scenes)
    assert any(len(scene.labels) >= 5 for scene in scenes)
    assert any(scene.height > scene.width for scene in scenes)
    assert any(scene.exif_orientation for scene in scenes)
    assert len({scene.name for scene in scenes}) == len(scenes)


@pytest.mark.parametrize("number", range(12))
def test_objects_lie_in_their_boxes_and_nowhere_else(number: int) -> None:
    """The same backdrop with and without objects differs in every box, and not beyond the boxes' shadows."""
    drawing = draw_picture(np.random.default_rng((SEED, number)), CLEAN)
    backdrop = draw_picture(np.random.default_rng((SEED, number)), replace(CLEAN, empty_share=1.0))
    assert len(backdrop.labels) == 0
    assert len(drawing.labels) > 0
    changed = np.abs(drawing.pixels.astype(int) - backdrop.pixels).max(axis=2) > 0
    elsewhere = changed.copy()
    for left, top, right, bottom in drawing.boxes.astype(int):
        inside = changed[top:bottom, left:right]
        assert inside.mean() > 0.25
        assert inside.any(axis=1).all()
        assert inside.any(axis=0).all()
        # Shadows reach four reaches of 4 % of an object beyond it; of an object cut by the border, beyond what is seen.
        margin = 6 + int(0.16 * DEFAULT_STYLE.object_size[1] * min(changed.shape))
        elsewhere[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = False
    assert not elsewhere.any()


def test_boxes_are_tight() -> None:
    """Shadows only darken, so what is brighter than the backdrop is object: inside its box, and up to its sides."""
    style = replace(CLEAN, objects=(1, 1), saturation=(0.0, 0.0), brightness=(0.2, 1.0))
    tight = 0
    for number in range(30):
        drawing = draw_picture(np.random.default_rng((SEED, number)), style)
        backdrop = draw_picture(np.random.default_rng((SEED, number)), replace(style, empty_share=1.0))
        rows, columns = np.nonzero((drawing.pixels.astype(int) - backdrop.pixels).max(axis=2) > 0)
        if len(rows) == 0:
            continue
        brighter = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        slack = (brighter - drawing.boxes[0]) * [1, 1, -1, -1]
        # A pixel half covered by the soft edge may count or not.
        assert (slack >= -2).all()
        tight += bool((slack <= 2).all())
    assert tight >= 10, "most bright objects reach all four sides of their box"


def test_every_orientation_is_stored_so_that_readers_see_the_truth_upright() -> None:
    style = replace(DEFAULT_STYLE, exif_share=1.0, formats=(("JPEG", 1.0),), sizes=((480, 360), (360, 480)))
    seen = set()
    for number in range(40):
        scene = draw_scene(SEED, number, style)
        assert scene.exif_orientation is not None
        with Image.open(io.BytesIO(scene.data)) as stored:
            assert stored.getexif()[0x0112] == scene.exif_orientation
        drawn = draw_picture(np.random.default_rng((SEED, number)), style)
        difference = np.abs(np.asarray(upright(scene), int) - drawn.pixels)
        assert difference.mean() < 8, f"orientation {scene.exif_orientation} is stored the wrong way round"
        seen.add(scene.exif_orientation)
    assert seen == set(range(2, 9))


def area(ring: Points) -> float:
    x, y = ring.T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


@pytest.mark.parametrize(
    ("shape", "corners", "lowest", "highest"),
    [
        pytest.param("disc", [72], 0.8 * 3.1, 3.15, id="a circle, perhaps squeezed"),
        pytest.param("box", [4], 0.8 * 2.6, 4.0, id="up to the full square"),
        pytest.param("triangle", [3], 0.8 * 1.75, 1.75, id="half of its rectangle"),
        pytest.param("star", [10], 0.8 * 1.1, 1.5, id="five points, five notches"),
        pytest.param("ring", [72, 72], 0.8 * 3.1, 3.15, id="a disc and its hole"),
        pytest.param("cross", [12], 0.8 * 1.8, 2.6, id="two crossing bars"),
    ],
)
def test_outlines(shape: str, corners: list[int], lowest: float, highest: float) -> None:
    for seed in range(20):
        rings = outline(shape, np.random.default_rng(seed))
        assert [len(ring) for ring in rings] == corners
        assert lowest <= area(rings[0]) <= highest
        assert all(area(hole) < 0.5 * area(rings[0]) for hole in rings[1:])
