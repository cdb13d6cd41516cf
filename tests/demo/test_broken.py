"""Broken files are broken for Pillow too, each in its way; the misnamed one is sound."""

import io

import pytest
from PIL import Image

from batchdet.demo.broken import BrokenFile, draw_broken, draw_misnamed
from batchdet.engine.decode import decode
from batchdet.errors import DecodeError

FILES = list(draw_broken(7))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_careful_reader_makes_a_picture_of_it(file: BrokenFile) -> None:
    with pytest.raises((OSError, ValueError, SyntaxError)), Image.open(io.BytesIO(file.data)) as image:
        image.load()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_ours_is_a_careful_reader(file: BrokenFile) -> None:
    with pytest.raises(DecodeError):
        decode(file.data, max_pixels=10**7)


def test_names_are_an_images_and_differ() -> None:
    names = [file.name for file in FILES]
    assert names == sorted(set(names))
    assert all(name.endswith((".jpg", ".png")) for name in names)


def test_same_seed_same_bytes() -> None:
    assert [file.data for file in draw_broken(7)] == [file.data for file in FILES]


def test_the_misnamed_scene_is_a_sound_png() -> None:
    scene = draw_misnamed(7)
    assert scene.name.endswith(".jpg")
    with Image.open(io.BytesIO(scene.data)) as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (scene.width, scene.height))
