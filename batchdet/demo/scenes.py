"""Draws scenes of textured shapes with their true boxes, the same for the same seed. Knows nothing of detectors.

Frame of every box: xyxy pixels of the EXIF-applied image.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from batchdet.demo.shapes import SHAPES, outline
from batchdet.demo.textures import Tones, backdrop, contrasting_colour, fill
from batchdet.records import BoolArray, FloatArray, IntArray, PixelArray

_ORIENTATION_TAG = 0x0112
_STORED_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How upright pixels are stored so that a reader who obeys the EXIF orientation sees them upright."""

_SAVING: dict[str, dict[str, int]] = {
    "JPEG": {"quality": 90},
    "PNG": {"compress_level": 3},
    "WEBP": {"quality": 90, "method": 2},
}
"""Pillow's settings by format: quick rather than small."""

_PLACING_TRIES = 12
_SUPERSAMPLING = 2
_SOLID = 127


@dataclass(frozen=True, slots=True)
class SceneStyle:
    """The world the scenes come from. Ranges are (lowest, highest); lengths are shares of the shorter side.

    Attributes:
        sizes: (width, height) to choose from, upright.
        objects: how many a scene tries to place, when it is not empty.
        object_size: longest extent of an object.
        empty_share: share of scenes without objects.
        min_visible: an object is only placed where every object keeps this share of its pixels in sight.
        saturation, brightness: of colours, in [0, 1].
        strokes: number of lines of clutter behind the objects.
        blur: radius of the blur over the whole picture.
        noise: standard deviation of the luminance noise, in grey levels of 255.
        exif_share: share of scenes stored turned, with an EXIF orientation.
        formats: share of each of Pillow's `JPEG`, `PNG` and `WEBP`.
    """

    sizes: tuple[tuple[int, int], ...] = ((480, 360), (640, 480), (800, 600), (960, 720), (480, 640), (600, 800))
    objects: tuple[int, int] = (1, 6)
    object_size: tuple[float, float] = (0.22, 0.5)
    empty_share: float = 0.07
    min_visible: float = 0.65
    saturation: tuple[float, float] = (0.25, 0.9)
    brightness: tuple[float, float] = (0.3, 1.0)
    strokes: tuple[int, int] = (3, 14)
    blur: tuple[float, float] = (0.0, 0.0025)
    noise: tuple[float, float] = (0.0, 8.0)
    exif_share: float = 0.12
    formats: tuple[tuple[str, float], ...] = (("JPEG", 0.8), ("PNG", 0.08), ("WEBP", 0.12))


DEFAULT_STYLE = SceneStyle()


@dataclass(frozen=True, slots=True)
class Drawing:
    """A scene as pixels, before it is stored.

    Attributes:
        pixels: [H, W, 3] uint8 RGB, upright.
        boxes: [T, 4] xyxy of what is visible of each object, integer-valued, inside the image.
        labels: [T] positions in `("__background__", *SHAPES)`; never 0.
    """

    pixels: PixelArray
    boxes: FloatArray
    labels: IntArray


@dataclass(frozen=True, slots=True)
class Scene:
    """A stored scene and its truth.

    Attributes:
        name: file name, e.g. `scene-00012.jpg`.
        data: the encoded bytes.
        width, height: pixels after EXIF orientation.
        exif_orientation: as stored; None without a tag.
        boxes: [T, 4] xyxy pixels of the EXIF-applied image.
        labels: [T] positions in `("__background__", *SHAPES)`; never 0.
    """

    name: str
    data: bytes
    width: int
    height: int
    exif_orientation: int | None
    boxes: FloatArray
    labels: IntArray


def draw_scenes(seed: int, count: int, style: SceneStyle = DEFAULT_STYLE) -> Iterator[Scene]:
    """The first `count` scenes of a seed; each depends on the seed and its own number only."""
    for number in range(count):
        yield draw_scene(seed, number, style)


def draw_scene(seed: int, number: int, style: SceneStyle = DEFAULT_STYLE) -> Scene:
    """Scene `number` of a seed, stored in a format of the style."""
    rng = np.random.default_rng((seed, number))
    drawing = draw_picture(rng, style)
    names, shares = zip(*style.formats, strict=True)
    image_format = names[int(rng.choice(len(names), p=shares))]
    turned = bool(rng.random() < style.exif_share) and image_format == "JPEG"
    orientation = int(rng.integers(2, 9)) if turned else None
    height, width = drawing.pixels.shape[:2]
    return Scene(
        name=f"scene-{number:05d}.{'jpg' if image_format == 'JPEG' else image_format.lower()}",
        data=_store(drawing.pixels, image_format, orientation),
        width=width,
        height=height,
        exif_orientation=orientation,
        boxes=drawing.boxes,
        labels=drawing.labels,
    )


def draw_picture(rng: np.random.Generator, style: SceneStyle = DEFAULT_STYLE) -> Drawing:
    """Draw one scene upright, without storing it."""
    width, height = style.sizes[int(rng.integers(len(style.sizes)))]
    tones = (style.saturation, style.brightness)
    canvas = backdrop(rng, (width, height), tones, int(rng.integers(style.strokes[0], style.strokes[1] + 1)))
    table = _Table(np.zeros((height, width), np.uint8), [])
    labels: list[int] = []
    wanted = 0 if rng.random() < style.empty_share else int(rng.integers(style.objects[0], style.objects[1] + 1))
    for _ in range(wanted):
        kind = int(rng.integers(len(SHAPES)))
        mask = _mask(rng, SHAPES[kind], style, min(width, height))
        corner = _find_place(rng, table, mask, style.min_visible)
        if corner is not None:
            table.put(mask, corner)
            _paint(rng, canvas, mask, corner, tones)
            labels.append(kind + 1)
    boxes = [_extent(table.owners == owner) for owner in range(1, len(labels) + 1)]
    return Drawing(
        pixels=_develop(rng, canvas, style),
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        labels=np.asarray(labels, np.int64),
    )


@dataclass(slots=True)
class _Table:
    """Which object each pixel shows: 0 the backdrop, n the n-th object placed.

    Attributes:
        owners: [H, W] uint8.
        areas: pixels of each object as placed, seen or not, also those outside the picture.
    """

    owners: PixelArray
    areas: list[int]

    def shares_left(self, mask: Image.Image, corner: tuple[int, int]) -> Iterator[float]:
        """Share in sight of every object, the new one first, if `mask` were put with its left upper at `corner`."""
        window, inside = self._window(mask, corner)
        yield float(inside.sum() / _area(mask))
        hidden = np.bincount(window[inside], minlength=len(self.areas) + 1)
        seen = np.bincount(self.owners.ravel(), minlength=len(self.areas) + 1)
        for owner, area in enumerate(self.areas, start=1):
            yield float((seen[owner] - hidden[owner]) / area)

    def put(self, mask: Image.Image, corner: tuple[int, int]) -> None:
        """Place an object over those already there."""
        window, inside = self._window(mask, corner)
        self.areas.append(_area(mask))
        window[inside] = len(self.areas)

    def _window(self, mask: Image.Image, corner: tuple[int, int]) -> tuple[PixelArray, BoolArray]:
        """The part of the picture under the mask, and which of its pixels the mask covers."""
        (left, top), (height, width) = corner, self.owners.shape
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + mask.width, width), min(top + mask.height, height)
        inside = np.asarray(mask)[y0 - top : y1 - top, x0 - left : x1 - left] > _SOLID
        return self.owners[y0:y1, x0:x1], inside


def _area(mask: Image.Image) -> int:
    return int((np.asarray(mask) > _SOLID).sum())


def _mask(rng: np.random.Generator, shape: str, style: SceneStyle, shorter_side: int) -> Image.Image:
    """The object's coverage: a tight `L` image, 255 inside."""
    extent = float(rng.uniform(*style.object_size)) * shorter_side
    rings = outline(shape, rng)
    low, high = rings[0].min(axis=0), rings[0].max(axis=0)
    factor = extent / float((high - low).max())
    width, height = np.ceil((high - low) * factor).astype(int).tolist()
    large = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING), 0)
    pen = ImageDraw.Draw(large)
    for ring, value in zip(rings, (255, 0), strict=False):
        corners = (ring - low) * (factor * _SUPERSAMPLING)
        pen.polygon([(float(x), float(y)) for x, y in corners], fill=value)
    return large.resize((width, height), Image.Resampling.BOX)


def _find_place(
    rng: np.random.Generator, table: _Table, mask: Image.Image, min_visible: float
) -> tuple[int, int] | None:
    """A left upper corner where every object stays visible enough; None when a few tries find none."""
    height, width = table.owners.shape
    for _ in range(_PLACING_TRIES):
        x, y = rng.uniform(-0.1, 1.1, 2)
        corner = (round(x * (width - mask.width)), round(y * (height - mask.height)))
        if all(share >= min_visible for share in table.shares_left(mask, corner)):
            return corner
    return None


def _paint(
    rng: np.random.Generator, canvas: Image.Image, mask: Image.Image, corner: tuple[int, int], tones: Tones
) -> None:
    """Put the object and its soft shadow on the canvas."""
    reach = max(2, round(0.04 * max(mask.size)))
    shadow = Image.new("L", (mask.width + 4 * reach, mask.height + 4 * reach), 0)
    shadow.paste(mask.point(lambda value: value * 0.45), (2 * reach, 2 * reach))
    shadow = shadow.filter(ImageFilter.BoxBlur(reach))
    canvas.paste((0, 0, 0), (corner[0] - reach, corner[1] - reach), shadow)
    behind = canvas.crop((*corner, corner[0] + mask.width, corner[1] + mask.height))
    around = np.asarray(behind.resize((1, 1), Image.Resampling.BOX), float).reshape(3)
    colour = contrasting_colour(rng, tones, around)
    canvas.paste(fill(rng, mask.size, colour, tones), corner, mask)


def _extent(seen: BoolArray) -> tuple[int, int, int, int]:
    """The tight box around the true pixels, xyxy."""
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _develop(rng: np.random.Generator, canvas: Image.Image, style: SceneStyle) -> PixelArray:
    """Blur and grain over the whole picture."""
    radius = float(rng.uniform(*style.blur)) * min(canvas.size)
    pixels = np.asarray(canvas.filter(ImageFilter.GaussianBlur(radius)), np.float32)
    grain = rng.standard_normal(pixels.shape[:2], np.float32) * np.float32(rng.uniform(*style.noise))
    return np.clip(pixels + grain[..., None], 0.0, 255.0).astype(np.uint8)


def _store(pixels: PixelArray, image_format: str, orientation: int | None) -> bytes:
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    if orientation is not None:
        exif[_ORIENTATION_TAG] = orientation
        picture = picture.transpose(_STORED_TURN[orientation])
    buffer = io.BytesIO()
    picture.save(buffer, image_format, exif=exif, **_SAVING[image_format])
    return buffer.getvalue()
