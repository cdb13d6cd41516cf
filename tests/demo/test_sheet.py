"""The sheet: every picture is on it, boxes where they belong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchdet.demo.sheet import SheetPicture, draw_sheet, write_sheet

CATEGORIES = ("__background__", "disc", "star")
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (120, 120, 30), (30, 120, 120)]


def picture(size: tuple[int, int], colour: tuple[int, int, int], *boxes: tuple[float, ...]) -> SheetPicture:
    width, height = size
    return SheetPicture(
        pixels=np.full((height, width, 3), colour, np.uint8),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.linspace(0.9, 0.5, len(boxes), dtype=np.float32),
        labels=np.ones(len(boxes), np.int64),
    )


SIZES = [(640, 480), (480, 640), (960, 720), (300, 900), (900, 300)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("width", [500, 1600])
def test_every_picture_is_on_the_sheet_in_its_proportions(count: int, width: int) -> None:
    pictures = [picture(size, colour) for size, colour in zip(SIZES, COLOURS, strict=True)][:count]
    pixels = np.asarray(draw_sheet(pictures, CATEGORIES, width=width))
    assert pixels.shape[1] == width
    for size, colour in zip(SIZES[:count], COLOURS, strict=False):
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        shown = ((columns.max() - columns.min() + 1), (rows.max() - rows.min() + 1))
        assert shown[0] * shown[1] == len(rows), "no picture covers another"
        assert shown[0] / shown[1] == pytest.approx(size[0] / size[1], rel=0.04)


def test_a_box_is_drawn_where_it_lies() -> None:
    sheet = np.asarray(draw_sheet([picture((400, 300), (0, 0, 0), (100, 150, 300, 250))], CATEGORIES, width=816))
    rows, columns = np.nonzero((sheet == (255, 99, 72)).all(axis=2))
    # The one picture is 800 wide here, twice its size, 8 pixels from the edge; the name sits above the box.
    scale = (sheet.shape[1] - 16) / 400 if sheet.shape[0] > 500 else (sheet.shape[0] - 16) / 300
    assert columns.min() == pytest.approx(8 + 100 * scale, abs=2)
    assert columns.max() == pytest.approx(8 + 300 * scale, abs=2)
    assert rows.max() == pytest.approx(8 + 250 * scale, abs=2)


@pytest.mark.parametrize(
    "box",
    [
        pytest.param((0, 0, 399, 299), id="the whole picture"),
        pytest.param((390, 0, 400, 5), id="in the right upper corner"),
        pytest.param((0, 295, 3, 300), id="in the left lower corner"),
    ],
)
def test_names_stay_inside_the_picture(box: tuple[float, ...]) -> None:
    sheet = np.asarray(draw_sheet([picture((400, 300), (0, 0, 0), box)], CATEGORIES, width=416, row_height=300))
    assert (sheet[:8] == 250 - np.array([0, 0, 2])).all()
    assert (sheet[-8:] == 250 - np.array([0, 0, 2])).all()


def test_the_format_follows_the_name(tmp_path: Path) -> None:
    sheet = draw_sheet([picture((40, 30), (1, 2, 3))], CATEGORIES, width=100)
    for name, image_format in (("a.jpg", "JPEG"), ("a.png", "PNG"), ("a.webp", "WEBP")):
        write_sheet(sheet, tmp_path / name)
        with Image.open(tmp_path / name) as written:
            assert (written.format, written.size) == (image_format, sheet.size)


def test_no_pictures_no_sheet() -> None:
    with pytest.raises(ValueError, match="at least one"):
        draw_sheet([], CATEGORIES)
