"""Bytes of one image file to RGB pixels, or DecodeError. Knows no tensors, no models and no file names.

Pixels are what Pillow makes of the file, converted to 8-bit RGB, with the turn that brings them upright:

- The format is told by the first bytes, never by a name, from a closed list; other plug-ins of Pillow are not reached.
- Alpha and palette transparency are dropped, not composited: the colour stored under a transparent pixel stays.
- CMYK is converted without its colour profile, and embedded profiles are ignored, as torchvision does.
- 16-bit grey is scaled to 8 bits (round(v / 257)); 16-bit colour keeps Pillow's high byte.
- 32-bit and floating point grey have no defined range and are refused.
- Of several frames or pages the first is taken.

A sound grey or colour JPEG is decoded by simplejpeg, which calls libjpeg-turbo as Pillow does and gives the same pixels
in less time. What libjpeg-turbo so much as warns of is decoded by Pillow: whether it is a failure stays one library's
word.
"""

import functools
import importlib.metadata
import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import PIL
import simplejpeg
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from batchdet.errors import DecodeError
from batchdet.records import PixelArray

FULL_SCALE = 8
"""Eighths of a side: a JPEG's blocks are 8 pixels wide, so its scales are eighths."""

# What Pillow's plug-ins raise on hostile bytes: most seen when fuzzing every format, the rest on paths of their parsers
# that a fuzzer seldom takes. Our own part of the guarded code is a few lines, so a bug of ours has little room to hide.
_PILLOW_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_GREY16_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
_TURBO_MODES = frozenset({"L", "RGB"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
_READ_FORMATS = "JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP, MPO, HEIC"
_REASON_LENGTH = 200
_warnings_lock = threading.Lock()


class Turn(NamedTuple):
    """How stored pixels lie to the upright picture: mirrored first, then rows made columns."""

    mirrors_rows: bool = False
    mirrors_columns: bool = False
    swaps_sides: bool = False


TURNS = {
    2: Turn(mirrors_columns=True),
    3: Turn(mirrors_rows=True, mirrors_columns=True),
    4: Turn(mirrors_rows=True),
    5: Turn(swaps_sides=True),
    6: Turn(mirrors_rows=True, swaps_sides=True),
    7: Turn(mirrors_rows=True, mirrors_columns=True, swaps_sides=True),
    8: Turn(mirrors_columns=True, swaps_sides=True),
}
"""By EXIF orientation (CIPA DC-008, tag 0x0112); any other value is upright."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """One image as RGB.

    Attributes:
        stored: [H, W, 4] uint8 as the file has them: R, G, B and a byte without meaning; C-contiguous, maybe read-only.
        eighths: scale `stored` was decoded at; its sides are those of the file times eighths / 8, rounded up.
        turn: what brings it upright.
        width, height: of the upright picture in full.
        exif_orientation: 1..8 as the file says and as `turn` applies; None without a valid tag.
        decoder: name and version of what made the pixels, `/exact` in full or `/fast` reduced: `pillow-13.0.0/exact`.
    """

    stored: PixelArray
    eighths: int
    turn: Turn
    width: int
    height: int
    exif_orientation: int | None
    decoder: str

    @property
    def pixels(self) -> PixelArray:
        """[H, W, 3] uint8 RGB, upright; a view."""
        rows = slice(None, None, -1 if self.turn.mirrors_rows else 1)
        columns = slice(None, None, -1 if self.turn.mirrors_columns else 1)
        view = self.stored[rows, columns, :3]
        return view.transpose(1, 0, 2) if self.turn.swaps_sides else view


class Scratch:
    """Memory that one picture after the other is decoded into: fresh memory costs a page fault every few kilobytes."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def take(self, count: int) -> PixelArray:
        """`count` bytes of any content, the same ones at every call."""
        if self._bytes.shape[0] < count:
            self._bytes = np.empty(count, np.uint8)
        return self._bytes[:count]


class _Plugin(Protocol):
    def __call__(self, fp: io.BytesIO, /) -> ImageFile.ImageFile: ...


def decode(
    data: bytes,
    max_pixels: int,
    eighths_of: Callable[[int, int], int] | None = None,
    scratch: Scratch | None = None,
) -> DecodedImage:
    """Decode one image file.

    Args:
        data: the whole file.
        max_pixels: width × height above which the file is refused before its pixels are decoded. Pillow itself also
            refuses GIF frames, WebP and tiles above 178,956,970 pixels.
        eighths_of: told the upright height and width, chooses the scale (1, 2, 4 or 8 eighths) that simplejpeg decodes
            at; None for full size. What Pillow decodes is always of full size.
        scratch: pixels may lie there, and are gone when it is used again; None gives every picture memory of its own.

    Raises:
        DecodeError: code `empty`, `not_an_image`, `unsupported_format` (a codec is not installed), `unsupported_mode`,
            `too_many_pixels`, `truncated`, `corrupt` or `out_of_memory`.
    """
    plugin = _plugin_for(data)
    _silence_pillow()
    try:
        with plugin(io.BytesIO(data)) as image:
            _check_header(image, max_pixels)
            if isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode in _TURBO_MODES:
                return _sound_jpeg(image, data, eighths_of, scratch or Scratch()) or _by_pillow(image)
            return _by_pillow(image)
    except _PILLOW_ERRORS as error:
        raise DecodeError(_code_of(error), _reason_of(error)) from error


def _plugin_for(data: bytes) -> _Plugin:
    if not data:
        raise DecodeError("empty", "the file has no bytes")
    for signature, plugin in _signatures().items():
        if data.startswith(signature):
            return plugin
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if data[4:8] == b"ftyp":
        return _iso_plugin(data)
    raise DecodeError("not_an_image", f"the first bytes are of no format read here ({_READ_FORMATS})")


@functools.cache
def _signatures() -> dict[bytes, _Plugin]:
    # JpegImageFile itself, not Pillow's factory for it: the first picture of an MPO is a plain JPEG.
    table: dict[bytes, _Plugin] = {
        b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
        b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
        b"GIF87a": GifImagePlugin.GifImageFile,
        b"GIF89a": GifImagePlugin.GifImageFile,
        b"BM": BmpImagePlugin.BmpImageFile,
    }
    return table | dict.fromkeys(TiffImagePlugin.PREFIXES, TiffImagePlugin.TiffImageFile)


def _iso_plugin(data: bytes) -> _Plugin:
    """The plug-in of an ISO base media file by the brands of its first box (ISO/IEC 14496-12, section 4.3)."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12]} | {data[start : start + 4] for start in range(16, size, 4)}
    if brands & _AVIF_BRANDS:
        if not features.check("avif"):
            raise DecodeError("unsupported_format", "AVIF: this Pillow was built without it")
        return AvifImagePlugin.AvifImageFile
    if brands & _HEIF_BRANDS:
        plugin = _heif_plugin()
        if plugin is None:
            raise DecodeError("unsupported_format", "HEIC: install pillow-heif, or batchdet[heif]")
        return plugin
    raise DecodeError("not_an_image", f"an ISO media file, of no format read here ({_READ_FORMATS})")


@functools.cache
def _heif_plugin() -> _Plugin | None:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        return None
    plugin: _Plugin = HeifImageFile
    return plugin


def _silence_pillow() -> None:
    """Keep Pillow's warnings (bad EXIF, big picture) out of the logs: what matters of them is in the outcome.

    A filter that stays, not catch_warnings: that swaps the list of all threads.
    """
    with _warnings_lock:
        if not any(entry[0] == "ignore" and entry[3] == _pillow_modules() for entry in warnings.filters):
            warnings.filterwarnings("ignore", module=_pillow_modules().pattern)


@functools.cache
def _pillow_modules() -> "re.Pattern[str]":
    return re.compile(r"(PIL|pillow_heif)\.")


def _check_header(image: ImageFile.ImageFile, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise DecodeError("too_many_pixels", f"{width} x {height} is more than max_pixels {max_pixels}")
    if image.mode not in _EIGHT_BIT_MODES | _GREY16_MODES:
        raise DecodeError("unsupported_mode", f"pixels of mode {image.mode} have no defined way to 8-bit RGB")


def _sound_jpeg(
    image: JpegImagePlugin.JpegImageFile,
    data: bytes,
    eighths_of: Callable[[int, int], int] | None,
    scratch: Scratch,
) -> DecodedImage | None:
    """None for what libjpeg-turbo refuses or warns of."""
    orientation = _orientation(image)
    turn = _turn(orientation)
    width, height = _upright(image.size, turn)
    eighths = FULL_SCALE if eighths_of is None else eighths_of(height, width)
    rows, columns = (-(-side * eighths // FULL_SCALE) for side in (image.height, image.width))
    try:
        # The smallest scale that gives this size is this scale.
        stored: PixelArray = simplejpeg.decode_jpeg(
            data, "RGBX", min_height=rows, min_width=columns, buffer=scratch.take(4 * rows * columns), strict=True
        )
    except ValueError:
        return None
    if stored.shape[:2] != (rows, columns):
        return None
    name = f"simplejpeg-{simplejpeg.__version__}/{'exact' if eighths == FULL_SCALE else 'fast'}"
    return DecodedImage(stored, eighths, turn, width, height, orientation, name)


def _by_pillow(image: ImageFile.ImageFile) -> DecodedImage:
    # Pillow turns a TIFF upright while loading it and then forgets the tag.
    turned_by_pillow = isinstance(image, TiffImagePlugin.TiffImageFile)
    early_orientation = _orientation(image) if turned_by_pillow else None
    image.load()
    orientation = early_orientation if turned_by_pillow else _orientation(image)
    turn = Turn() if turned_by_pillow else _turn(orientation)
    pixels = _to_rgb(image)
    buffer = np.frombuffer(pixels.tobytes("raw", "RGBX"), np.uint8)
    width, height = _upright(pixels.size, turn)
    stored = buffer.reshape(pixels.height, pixels.width, 4)
    return DecodedImage(stored, FULL_SCALE, turn, width, height, orientation, _pillow_decoder(image.format))


def _turn(orientation: int | None) -> Turn:
    return Turn() if orientation is None else TURNS.get(orientation, Turn())


def _upright(size: tuple[int, int], turn: Turn) -> tuple[int, int]:
    width, height = size
    return (height, width) if turn.swaps_sides else (width, height)


def _orientation(image: ImageFile.ImageFile) -> int | None:
    """EXIF (else XMP) orientation 1..8; None when absent, out of range or unreadable: a bad tag spoils no pixels."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except _PILLOW_ERRORS:
        return None
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode not in _GREY16_MODES:
        return image.convert("RGB")
    grey = (np.asarray(image).astype(np.uint32) + 128) // 257
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


@functools.cache
def _pillow_decoder(image_format: str | None) -> str:
    if image_format == "HEIF":
        return f"pillow-heif-{importlib.metadata.version('pillow-heif')}/exact"
    return f"pillow-{PIL.__version__}/exact"


def _code_of(error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "too_many_pixels"
    if isinstance(error, MemoryError):
        return "out_of_memory"
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return "truncated"
    return "corrupt"


def _reason_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_REASON_LENGTH]
