"""Colours, fills and backdrops of drawn scenes. Knows no shapes and no boxes."""

import colorsys

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Rgb = npt.NDArray[np.float64]
"""[3] red, green, blue in [0, 255]."""

Tones = tuple[tuple[float, float], tuple[float, float]]
"""Ranges of saturation and of brightness, in [0, 1]."""

_CALM = 0.65
"""How saturated a backdrop is beside the objects before it."""

_Plane = npt.NDArray[np.float32]


def random_colour(rng: np.random.Generator, tones: Tones, hues: tuple[float, float] = (0.0, 1.0)) -> Rgb:
    """A colour within the tones; `hues` is a range on the colour wheel of one turn."""
    hue, saturation, value = rng.uniform(*hues) % 1.0, rng.uniform(*tones[0]), rng.uniform(*tones[1])
    return 255.0 * np.asarray(colorsys.hsv_to_rgb(hue, saturation, value))


def contrasting_colour(rng: np.random.Generator, tones: Tones, against: Rgb) -> Rgb:
    """Of a few random colours the one farthest from `against`: objects stay visible without a tell-tale colour."""
    choices = [random_colour(rng, tones) for _ in range(4)]
    return max(choices, key=lambda colour: float(np.abs(colour - against).sum()))


def fill(rng: np.random.Generator, size: tuple[int, int], base: Rgb, tones: Tones) -> Image.Image:
    """A textured rectangle of `size` (width, height): a pattern of two colours under a slanted light."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    span = float(max(width, height))
    pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))](rng, rows / span, columns / span)
    second = base + (random_colour(rng, tones) - base) * rng.uniform(0.35, 0.75)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    slope = (columns / span - 0.5) * np.float32(np.cos(angle)) + (rows / span - 0.5) * np.float32(np.sin(angle))
    light = 1.0 + slope * np.float32(rng.uniform(0.1, 0.5))
    mixed = (base + pattern[..., None] * (second - base)).astype(np.float32) * light[..., None]
    return Image.fromarray(np.clip(mixed, 0.0, 255.0).astype(np.uint8))


def backdrop(rng: np.random.Generator, size: tuple[int, int], tones: Tones, strokes: int) -> Image.Image:
    """What lies behind the objects: soft patches of three colours, then `strokes` curved lines and specks."""
    muted = ((tones[0][0] * _CALM, tones[0][1] * _CALM), tones[1])
    hue = rng.random()
    colours = [random_colour(rng, muted, (hue - 0.14, hue + 0.14)) * rng.uniform(0.7, 1.0) for _ in range(3)]
    cells = int(rng.integers(3, 9))
    patches = rng.random((cells, cells, 2))
    mixed = colours[0] + patches[..., :1] * (colours[1] - colours[0])
    mixed = mixed + patches[..., 1:] * (colours[2] - mixed) * 0.6
    canvas = Image.fromarray(np.clip(mixed, 0.0, 255.0).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    for _ in range(strokes):
        colour = _ink(canvas, rng, tones)
        if rng.random() < 0.7:
            _stroke(rng, pen, size, colour)
        else:
            _specks(rng, pen, size, colour)
    return canvas


def _ink(canvas: Image.Image, rng: np.random.Generator, tones: Tones) -> tuple[int, int, int]:
    middle = np.asarray(canvas.getpixel((canvas.width // 2, canvas.height // 2)), float)
    red, green, blue = (middle + (random_colour(rng, tones) - middle) * rng.uniform(0.2, 0.7)).astype(int).tolist()
    return red, green, blue


def _stroke(
    rng: np.random.Generator, pen: ImageDraw.ImageDraw, size: tuple[int, int], ink: tuple[int, int, int]
) -> None:
    """A quadratic curve across part of the picture."""
    corners = rng.uniform(-0.1, 1.1, (3, 2)) * size
    steps = np.linspace(0.0, 1.0, 24)[:, None]
    curve = (1 - steps) ** 2 * corners[0] + 2 * steps * (1 - steps) * corners[1] + steps**2 * corners[2]
    width = max(1, round(rng.uniform(0.002, 0.014) * min(size)))
    pen.line([(float(x), float(y)) for x, y in curve], fill=ink, width=width, joint="curve")


def _specks(
    rng: np.random.Generator, pen: ImageDraw.ImageDraw, size: tuple[int, int], ink: tuple[int, int, int]
) -> None:
    """A loose handful of small dots."""
    centre = rng.uniform(0.0, 1.0, 2) * size
    for x, y in centre + rng.normal(0.0, 0.08 * min(size), (int(rng.integers(5, 18)), 2)):
        radius = rng.uniform(0.002, 0.01) * min(size)
        pen.ellipse([float(x - radius), float(y - radius), float(x + radius), float(y + radius)], fill=ink)


def _plain(_: np.random.Generator, rows: _Plane, __: _Plane) -> _Plane:
    return np.zeros_like(rows)


def _ramp(rng: np.random.Generator, rows: _Plane, columns: _Plane) -> _Plane:
    return _slanted(rng, rows, columns)


def _glow(rng: np.random.Generator, rows: _Plane, columns: _Plane) -> _Plane:
    y, x = rng.uniform(0.25, 0.6, 2).astype(np.float32)
    reach: _Plane = np.minimum(np.hypot(rows - y, columns - x) * np.float32(1.6), np.float32(1.0))
    return reach


def _stripes(rng: np.random.Generator, rows: _Plane, columns: _Plane) -> _Plane:
    waves: _Plane = np.sin(_slanted(rng, rows, columns) * np.float32(rng.uniform(18.0, 45.0)))
    return (waves > 0).astype(np.float32)


def _checks(rng: np.random.Generator, rows: _Plane, columns: _Plane) -> _Plane:
    cells = np.float32(rng.uniform(4.0, 9.0))
    odd: _Plane = (np.floor(rows * cells) + np.floor(columns * cells)) % np.float32(2)
    return odd


def _dots(rng: np.random.Generator, rows: _Plane, columns: _Plane) -> _Plane:
    cells = np.float32(rng.uniform(5.0, 9.0))
    y, x = (rows * cells) % 1.0 - 0.5, (columns * cells) % 1.0 - 0.5
    inside: npt.NDArray[np.bool_] = np.hypot(y, x) < rng.uniform(0.22, 0.36)
    return inside.astype(np.float32)


def _slanted(rng: np.random.Generator, rows: _Plane, columns: _Plane) -> _Plane:
    angle = rng.uniform(0.0, 2.0 * np.pi)
    return columns * np.float32(np.cos(angle)) + rows * np.float32(np.sin(angle))


_PATTERNS = (_plain, _ramp, _glow, _stripes, _checks, _dots)
