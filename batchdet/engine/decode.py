"""Bytes of one image file to RGB pixels, or DecodeError. Knows no tensors, no models and no file names.

Pixels are what Pillow makes of the file, converted to 8-bit RGB and turned upright:

- The format is told by the first bytes, never by a name, from a closed list; other plug-ins of Pillow are not reached.
- Alpha and palette transparency are dropped, not composited: the colour stored under a transparent pixel stays.
- CMYK is converted without its colour profile, and embedded profiles are ignored, as torchvision does.
- 16-bit grey is scaled to 8 bits (round(v / 257)); 16-bit colour keeps Pillow's high byte.
- 32-bit and floating point grey have no defined range and are refused.
- Of several frames or pages the first is taken.
"""

import functools
import importlib.metadata
import io
import re
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import PIL
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
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY16_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
_READ_FORMATS = "JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP, MPO, HEIC"
_REASON_LENGTH = 200
_warnings_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """One image as upright RGB.

    Attributes:
        pixels: [H, W, 3] uint8 RGB, C-contiguous, possibly read-only.
        width, height: of the pixels, after EXIF orientation.
        exif_orientation: 1..8 as the file says and as was applied; None without a valid tag.
        decoder: name and version of what made the pixels, e.g. `pillow-13.0.0/exact`.
    """

    pixels: PixelArray
    width: int
    height: int
    exif_orientation: int | None
    decoder: str


class _Plugin(Protocol):
    def __call__(self, fp: io.BytesIO, /) -> ImageFile.ImageFile: ...


def decode(data: bytes, max_pixels: int) -> DecodedImage:
    """Decode one image file.

    Args:
        data: the whole file.
        max_pixels: width × height above which the file is refused before its pixels are decoded. Pillow itself also
            refuses GIF frames, WebP and tiles above 178,956,970 pixels.

    Raises:
        DecodeError: code `empty`, `not_an_image`, `unsupported_format` (a codec is not installed), `unsupported_mode`,
            `too_many_pixels`, `truncated`, `corrupt` or `out_of_memory`.
    """
    plugin = _plugin_for(data)
    _silence_pillow()
    try:
        with plugin(io.BytesIO(data)) as image:
            _check_header(image, max_pixels)
            return _upright_rgb(image)
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


def _upright_rgb(image: ImageFile.ImageFile) -> DecodedImage:
    # Pillow turns a TIFF upright while loading it and then forgets the tag.
    turned_by_pillow = isinstance(image, TiffImagePlugin.TiffImageFile)
    early_orientation = _orientation(image) if turned_by_pillow else None
    image.load()
    orientation = early_orientation if turned_by_pillow else _orientation(image)
    pixels = _to_rgb(image)
    if orientation in _UPRIGHT and not turned_by_pillow:
        pixels = pixels.transpose(_UPRIGHT[orientation])
    array = np.ascontiguousarray(pixels, dtype=np.uint8)
    height, width = array.shape[:2]
    return DecodedImage(array, width, height, orientation, _decoder(image.format))


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
def _decoder(image_format: str | None) -> str:
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
