"""A sheet of pictures with their boxes, for people to look at. Knows no storage and no detector."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from batchdet.records import FloatArray, IntArray, PixelArray

_COLOURS = (
    (255, 99, 72),
    (46, 213, 115),
    (30, 144, 255),
    (255, 192, 18),
    (190, 110, 255),
    (0, 210, 211),
    (255, 121, 198),
    (163, 203, 56),
)
_PAPER = (250, 250, 248)
_GAP = 8


@dataclass(frozen=True, slots=True)
class SheetPicture:
    """One picture and what to draw on it.

    Attributes:
        pixels: [H, W, 3] uint8 RGB, upright.
        boxes: [D, 4] xyxy pixels of it.
        scores: [D].
        labels: [D] positions in the sheet's categories.
    """

    pixels: PixelArray
    boxes: FloatArray
    scores: FloatArray
    labels: IntArray


def draw_sheet(
    pictures: Sequence[SheetPicture], categories: Sequence[str], width: int = 1600, row_height: int = 270
) -> Image.Image:
    """Pictures side by side in rows of equal width, each category's boxes in a colour of its own.

    Args:
        pictures: drawn in this order, left to right, then down.
        categories: names in label order, "__background__" first.
        width: pixels of the sheet.
        row_height: pixels aimed at; rows are scaled so that they fill the width.

    Raises:
        ValueError: there are no pictures.
    """
    if not pictures:
        raise ValueError("a sheet needs at least one picture")
    rows = _rows(pictures, width, row_height)
    heights = [_fitted_height(row, width, row_height) for row in rows]
    sheet = Image.new("RGB", (width, _GAP + sum(height + _GAP for height in heights)), _PAPER)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for picture in row:
            tile = _tile(picture, height, categories)
            sheet.paste(tile, (left, top))
            left += tile.width + _GAP
        top += height + _GAP
    return sheet


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write the sheet in the format its name ends with (`.jpg`, `.png`, `.webp`).

    Raises:
        ValueError: no format has that ending.
        OSError: the file cannot be written.
    """
    sheet.save(path, quality=88)


def _aspect(picture: SheetPicture) -> float:
    height, width = picture.pixels.shape[:2]
    return float(width / height)


def _rows(pictures: Sequence[SheetPicture], width: int, row_height: int) -> list[list[SheetPicture]]:
    """Fill each row until its pictures at the aimed height reach the sheet's width."""
    rows: list[list[SheetPicture]] = [[]]
    for picture in pictures:
        if rows[-1] and _fitted_height(rows[-1], width, row_height * 2) <= row_height:
            rows.append([])
        rows[-1].append(picture)
    return rows


def _fitted_height(row: Sequence[SheetPicture], width: int, tallest: int) -> int:
    """The height at which the row fills the width, or `tallest` for a short last row."""
    free = width - _GAP * (len(row) + 1)
    return min(tallest, int(free / sum(_aspect(picture) for picture in row)))


def _tile(picture: SheetPicture, height: int, categories: Sequence[str]) -> Image.Image:
    """One picture at its height, boxes and names drawn after scaling so that every tile's lines are alike."""
    scale = height / picture.pixels.shape[0]
    width = max(1, int(picture.pixels.shape[1] * scale))
    tile = Image.fromarray(picture.pixels).resize((width, height), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(tile)
    order = np.argsort(picture.scores, kind="stable")
    for box, score, label in zip(
        picture.boxes[order].tolist(), picture.scores[order].tolist(), picture.labels[order].tolist(), strict=True
    ):
        colour = _COLOURS[(label - 1) % len(_COLOURS)]
        corners = [side * scale for side in box]
        pen.rectangle(corners, outline=colour, width=3)
        _tag(pen, tile.size, (corners[0], corners[1]), f"{categories[label]} {score:.2f}", colour)
    return tile


def _tag(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
) -> None:
    """The category's name on its colour, above the box's left upper corner and never outside the picture."""
    font = ImageFont.load_default(13)
    length = pen.textlength(text, font) + 8
    left = max(0.0, min(corner[0], size[0] - length))
    top = max(0.0, corner[1] - 17)
    pen.rectangle((left, top, left + length, top + 17), fill=colour)
    pen.text((left + 4, top + 8.5), text, fill=(20, 20, 20), font=font, anchor="lm")
