"""JPEGs to measure on, from given photographs or drawn scenes, in any size. Knows no detector."""

import io
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from batchdet.demo.scenes import SceneStyle, draw_picture

Size = tuple[int, int]
"""(width, height)."""
SMALL: Size = (640, 480)
SIZES: dict[str, Size] = {"640x480": SMALL, "1920x1080": (1920, 1080), "4000x3000": (4000, 3000)}
NUM_PICTURES = {"640x480": 120, "1920x1080": 40, "4000x3000": 12}
"""Different pictures of each size; data sets repeat them."""
QUALITY = 90
GRAIN = 5.0
"""Standard deviation of the noise that enlarged pictures get at each scale, in grey levels."""


def load_jpegs(folder: Path | None, size: str = "640x480", most: int | None = None) -> list[bytes]:
    """The pictures of a folder as JPEGs of one size, those that are so already as they are; without one, scenes.

    Args:
        folder: of .jpg and .png files.
        size: one of SIZES.
        most: pictures to make; None for as many as a benchmark of many thousand images wants.
    """
    count = most or NUM_PICTURES[size]
    if folder is None:
        return [_fit(Image.fromarray(pixels), SIZES[size], place) for place, pixels in enumerate(_draw(count))]
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise SystemExit(f"--images {folder}: no .jpg or .png there")
    return [_load(path, SIZES[size], place) for place, path in enumerate(paths[:count])]


def write_folder(jpegs: list[bytes], folder: Path, count: int) -> Path:
    """`count` files, the pictures again and again."""
    folder.mkdir(parents=True)
    for number, data in enumerate(islice(cycle(jpegs), count)):
        (folder / f"{number:06d}.jpg").write_bytes(data)
    return folder


def as_tensors(jpegs: list[bytes]) -> list[Tensor]:
    """What a stock detector takes: [3, H, W] float32 in [0, 1]."""
    pixels = [np.array(Image.open(io.BytesIO(data)).convert("RGB")) for data in jpegs]
    return [torch.from_numpy(picture).permute(2, 0, 1).float().div_(255) for picture in pixels]


def _draw(count: int) -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    style = SceneStyle(sizes=(SMALL,))
    for number in range(count):
        yield draw_picture(np.random.default_rng((7, number)), style).pixels


def _load(path: Path, size: Size, seed: int) -> bytes:
    with Image.open(path) as image:
        if (image.format, image.mode, image.size) == ("JPEG", "RGB", size) and 0x0112 not in image.getexif():
            return path.read_bytes()
        return _fit(ImageOps.exif_transpose(image).convert("RGB"), size, seed)


def _fit(image: Image.Image, size: Size, seed: int) -> bytes:
    fitted = ImageOps.fit(image, size)
    if size[0] > image.size[0]:
        # Else an enlarged picture is smooth, and decodes faster than any photograph of its size.
        fitted = _with_grain(fitted, seed)
    buffer = io.BytesIO()
    fitted.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _with_grain(image: Image.Image, seed: int) -> Image.Image:
    """Noise of equal strength at every scale, as the texture of natural pictures has it."""
    draw = np.random.default_rng((11, seed))
    width, height = image.size
    noise = np.zeros((height, width), np.float32)
    for scale in (1, 2, 4, 8):
        layer = draw.normal(0, GRAIN, (-(-height // scale), -(-width // scale))).astype(np.float32)
        noise += np.asarray(Image.fromarray(layer).resize((width, height), Image.Resampling.BILINEAR))
    grained = np.asarray(image, np.float32) + noise[..., None]
    return Image.fromarray(grained.clip(0, 255).astype(np.uint8))
