"""A decoded picture to the normalised, resized planes a torchvision detector takes. Knows no files and no tensors.

Equal to torchvision's GeneralizedRCNNTransform (models/detection/transform.py) up to float noise (1e-6), which
normalises the whole picture before it interpolates. Bilinear weights sum to one, so here the four source pixels of an
output pixel are gathered and blended first and normalised last, at the size of the output.

Shape shorthand: H×W stored pixels, h×w output pixels, R source rows of a strip.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchdet.engine.decode import FULL_SCALE, DecodedImage
from batchdet.records import FloatArray, InputSpec, IntArray

# Working rows are handled in strips of about this many bytes, so that they stay in a core's cache.
_STRIP_BYTES = 1 << 17


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


def resize_normalised(image: DecodedImage, out: FloatArray, spec: InputSpec) -> None:
    """Resize bilinearly (no antialiasing, corners not aligned), scale to [0, 1], subtract mean, divide by std.

    The picture is turned upright on the way: only the taps are, never its pixels.

    Args:
        image: as decoded.
        out: [3, h, w] float32 of the upright picture, written; may be a strided view.
        spec: gives mean and std; the size is `out`'s.
    """
    turn, scale = image.turn, image.eighths / FULL_SCALE
    planes = out.transpose(0, 2, 1) if turn.swaps_sides else out
    height, width = (image.width, image.height) if turn.swaps_sides else (image.height, image.width)
    rows = _taps(image.stored.shape[0], height * scale, planes.shape[1], turn.mirrors_rows)
    columns = _taps(image.stored.shape[1], width * scale, planes.shape[2], turn.mirrors_columns)
    _blend(image.stored.view(np.uint32)[:, :, 0], rows, columns, planes, spec)


@functools.lru_cache(maxsize=256)
def _taps(size: int, extent: float, out_size: int, mirrored: bool) -> _Taps:
    """The taps of a side of `size` stored pixels, of which the last may stand for less: `extent` are of the picture.

    Source: `area_pixel_compute_source_index` and `compute_source_index_and_lambda` of ATen's UpSample.h.
    The position is rounded to float32 once, after product and difference, as the fused multiply-add of torch's
    one-thread kernel does. With more threads torch rounds twice, which moves a pixel of pure noise by up to 2e-4.
    """
    scale = np.float64(np.float32(extent) / np.float32(out_size))
    skipped = size - extent if mirrored else 0.0
    position = np.maximum((scale * (np.arange(out_size) + 0.5) - 0.5 + skipped).astype(np.float32), np.float32(0))
    low = np.minimum(position.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    weight = np.clip(position - low.astype(np.float32), np.float32(0), np.float32(1))
    return _Taps(size - 1 - low, size - 1 - high, weight) if mirrored else _Taps(low, high, weight)


def _blend(source: npt.NDArray[np.uint32], rows: _Taps, columns: _Taps, planes: FloatArray, spec: InputSpec) -> None:
    """[H, W] four-byte pixels to `planes` [3, h, w], a strip of output rows at a time."""
    out_height, out_width = planes.shape[1:]
    mean, factor = _normalisation(spec)
    along_row = np.repeat(columns.weight, 4)
    strip = max(1, min(out_height, _STRIP_BYTES // (16 * out_width)))
    for start in range(0, out_height, strip):
        part = slice(start, start + strip)
        low, high = rows.low[part], rows.high[part]
        first, last = min(low[0], high[-1]), max(low[0], high[-1]) + 1
        if last - first < 2 * len(low):
            squeezed = _blend_along_rows(source[first:last], None, columns, along_row)
            above, below = np.take(squeezed, low - first, axis=0), np.take(squeezed, high - first, axis=0)
        else:
            squeezed = _blend_along_rows(source, np.concatenate([low, high]), columns, along_row)
            above, below = squeezed[: len(low)], squeezed[len(low) :]
        below -= above
        below *= rows.weight[part, None]
        above += below
        pixels = above.reshape(len(low), out_width, 4)
        for channel in range(3):
            # Difference first: its rounding error is smaller than that of v * factor - mean * factor.
            plane = pixels[:, :, channel] - mean[channel]
            np.multiply(plane, factor[channel], out=planes[channel, part])


def _blend_along_rows(
    source: npt.NDArray[np.uint32], used: IntArray | None, columns: _Taps, weight: FloatArray
) -> FloatArray:
    """[H, W] pixels to [R, 4*w] float32 of 0..255: all rows, or the `used` ones, interpolated along the row."""
    left, right = (_gather(source, used, places) for places in (columns.low, columns.high))
    right -= left
    right *= weight
    left += right
    return left


def _gather(source: npt.NDArray[np.uint32], used: IntArray | None, places: IntArray) -> FloatArray:
    """The pixels at `places` of each row, as [R, 4*w] float32."""
    if used is None:
        pixels = np.take(source, places, axis=1, mode="clip")
    else:
        pixels = np.take(source.reshape(-1), used[:, None] * source.shape[1] + places, mode="clip")
    return pixels.view(np.uint8).astype(np.float32)


def _normalisation(spec: InputSpec) -> tuple[FloatArray, FloatArray]:
    """Mean in 0..255 and 1/(255*std), by channel."""
    return (255 * np.array(spec.mean)).astype(np.float32), (1 / (255 * np.array(spec.std))).astype(np.float32)
