"""Folders of 640×480 JPEGs to measure on, from given photographs or drawn scenes. Knows no detector."""

import io
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from batchdet.demo.scenes import SceneStyle, draw_picture

SIZE = (640, 480)
"""(width, height) of every picture."""
NUM_DRAWN = 120
QUALITY = 90


def load_jpegs(folder: Path | None) -> list[bytes]:
    """The pictures of a folder as 640×480 JPEGs, those that are so already as they are; without a folder, scenes."""
    if folder is None:
        return [_encode(Image.fromarray(pixels)) for pixels in _draw()]
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise SystemExit(f"--images {folder}: no .jpg or .png there")
    return [_fit(path) for path in paths]


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


def _draw() -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    style = SceneStyle(sizes=(SIZE,))
    for number in range(NUM_DRAWN):
        yield draw_picture(np.random.default_rng((7, number)), style).pixels


def _fit(path: Path) -> bytes:
    with Image.open(path) as image:
        if (image.format, image.mode, image.size) == ("JPEG", "RGB", SIZE) and 0x0112 not in image.getexif():
            return path.read_bytes()
        return _encode(ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), SIZE))


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
