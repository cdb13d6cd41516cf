"""uint8 RGB to the normalised, resized planes a torchvision detector takes. Knows no files and no tensors.

Equal to torchvision's GeneralizedRCNNTransform (models/detection/transform.py) up to float noise (1e-6), which
normalises the whole picture before it interpolates; here only the source pixels that an output pixel needs are touched.

Shape shorthand: H×W source pixels, h×w output pixels.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from batchdet.records import FloatArray, InputSpec, IntArray, PixelArray

# Working rows are handled in strips of about this many bytes, so that they stay in a core's cache.
_STRIP_BYTES = 1 << 19


@dataclass(frozen=True, slots=True)
class _Taps:
    """For each output position along one side: the two source positions and the weight of the second."""

    low: IntArray
    high: IntArray
    weight: FloatArray


def output_size(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """(h, w) that torchvision resizes an image of `height` × `width` to; a side may come out 0.

    Source: `_resize_image_and_masks` with `recompute_scale_factor=True`: the product is floored in double precision.
    """
    if spec.fixed_size is not None:
        return spec.fixed_size
    scale = min(spec.min_size / min(height, width), spec.max_size / max(height, width))
    return int(height * scale), int(width * scale)


def padded_size(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """(H, W) of the zero-padded picture: each side rounded up to a multiple of `size_divisible`."""
    step = spec.size_divisible
    return math.ceil(height / step) * step, math.ceil(width / step) * step


def resize_normalised(pixels: PixelArray, out: FloatArray, spec: InputSpec) -> None:
    """Resize bilinearly (no antialiasing, corners not aligned), scale to [0, 1], subtract mean, divide by std.

    Args:
        pixels: [H, W, 3] uint8, C-contiguous.
        out: [3, h, w] float32, written; may be a strided view.
        spec: gives mean and std; the size is `out`'s.
    """
    height, width = pixels.shape[:2]
    out_height, out_width = out.shape[1:]
    rows = _taps(height, out_height)
    used, place = np.unique(np.concatenate([rows.low, rows.high]), return_inverse=True)
    source = pixels.reshape(height, width * 3)
    if len(used) < height:
        source = source[used]
    else:
        place = np.concatenate([rows.low, rows.high])
    squeezed = _resize_rows(source, out_width, spec)
    _resize_columns(squeezed, _Taps(place[:out_height], place[out_height:], rows.weight), out)


@functools.lru_cache(maxsize=256)
def _taps(size: int, out_size: int) -> _Taps:
    """Source: `area_pixel_compute_source_index` and `compute_source_index_and_lambda` of ATen's UpSample.h.

    The position is rounded to float32 once, after product and difference, as the fused multiply-add of torch's
    one-thread kernel does. With more threads torch rounds twice, which moves a pixel of pure noise by up to 2e-4.
    """
    scale = np.float64(np.float32(size) / np.float32(out_size))
    position = np.maximum((scale * (np.arange(out_size) + 0.5) - 0.5).astype(np.float32), np.float32(0))
    low = np.minimum(position.astype(np.int64), size - 1)
    weight = np.clip(position - low.astype(np.float32), np.float32(0), np.float32(1))
    return _Taps(low, np.minimum(low + 1, size - 1), weight)


def _resize_rows(source: PixelArray, out_width: int, spec: InputSpec) -> FloatArray:
    """[R, W*3] interleaved uint8 to [R, 3*w] planar float32, normalised and interpolated along the row."""
    count, width = source.shape[0], source.shape[1] // 3
    taps = _taps(width, out_width)
    channel = np.arange(3)[:, None]
    low, high = (taps.low * 3 + channel).ravel(), (taps.high * 3 + channel).ravel()
    weight = np.tile(taps.weight, 3)
    rest = 1 - weight
    # Normalising before the gather is less work when the row grows, after it when the row shrinks.
    gather_first = 2 * out_width < width
    mean, factor = _normalisation(spec, out_width, planar=True) if gather_first else _normalisation(spec, width)
    result = np.empty((count, 3 * out_width), np.float32)
    strip = _strip_rows(count, max(out_width, 0 if gather_first else width))
    for start in range(0, count, strip):
        rows, left = source[start : start + strip], result[start : start + strip]
        if gather_first:
            left[...] = np.take(rows, low, axis=1, mode="clip")
            right = np.take(rows, high, axis=1, mode="clip").astype(np.float32)
            _normalise(left, mean, factor)
            _normalise(right, mean, factor)
        else:
            plain = rows.astype(np.float32)
            _normalise(plain, mean, factor)
            np.take(plain, low, axis=1, mode="clip", out=left)
            right = np.take(plain, high, axis=1, mode="clip")
        left *= rest
        right *= weight
        left += right
    return result


def _resize_columns(source: FloatArray, taps: _Taps, out: FloatArray) -> None:
    """[R, 3*w] planar rows to `out` [3, h, w], interpolated between rows."""
    out_height, out_width = out.shape[1:]
    by_row = out.transpose(1, 0, 2)
    weight = taps.weight[:, None]
    rest = 1 - weight
    strip = _strip_rows(out_height, out_width)
    for start in range(0, out_height, strip):
        part = slice(start, start + strip)
        above = source[taps.low[part]]
        below = source[taps.high[part]]
        above *= rest[part]
        below *= weight[part]
        np.add(above.reshape(-1, 3, out_width), below.reshape(-1, 3, out_width), out=by_row[part])


def _strip_rows(count: int, width: int) -> int:
    return max(1, min(count, _STRIP_BYTES // (12 * width)))


def _normalisation(spec: InputSpec, width: int, *, planar: bool = False) -> tuple[FloatArray, FloatArray]:
    """Mean in 0..255 and 1/(255*std), laid out over one row."""
    mean = (255 * np.array(spec.mean)).astype(np.float32)
    factor = (1 / (255 * np.array(spec.std))).astype(np.float32)
    if planar:
        return np.repeat(mean, width), np.repeat(factor, width)
    return np.tile(mean, width), np.tile(factor, width)


def _normalise(values: FloatArray, mean: FloatArray, factor: FloatArray) -> None:
    # Difference first: its rounding error is smaller than that of v * factor - mean * factor.
    values -= mean
    values *= factor
