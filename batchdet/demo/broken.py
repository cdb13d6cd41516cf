"""Files that look like images of a bucket and are not, on purpose. Knows no decoder."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from batchdet.demo.scenes import DEFAULT_STYLE, Scene, draw_scene


@dataclass(frozen=True, slots=True)
class BrokenFile:
    """A file no careful reader makes a picture of.

    Attributes:
        name: file name with an image's ending.
        data: its bytes.
        problem: what is wrong with it, for people.
    """

    name: str
    data: bytes
    problem: str


def draw_broken(seed: int) -> Iterator[BrokenFile]:
    """One file of every kind of damage, the same for the same seed."""
    rng = np.random.default_rng((seed, 0))
    jpeg = _scene_as(seed, 1, "JPEG").data
    png = _scene_as(seed, 2, "PNG").data
    page = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"
    damaged = bytearray(png)
    middle = len(damaged) // 2
    damaged[middle : middle + 64] = rng.bytes(64)
    yield BrokenFile("broken-cut-short.jpg", jpeg[: len(jpeg) // 2], "an upload that ended half-way")
    yield BrokenFile("broken-empty.jpg", b"", "no bytes at all")
    yield BrokenFile("broken-flipped-bytes.png", bytes(damaged), "bytes in the middle overwritten")
    yield BrokenFile("broken-header-only.jpg", jpeg[:160], "a header without pixels")
    yield BrokenFile("broken-noise.jpg", rng.bytes(4096), "random bytes")
    yield BrokenFile("broken-web-page.jpg", page, "a server's error page saved as a picture")


def draw_misnamed(seed: int) -> Scene:
    """A sound PNG whose name says JPEG: careful readers look at the bytes and label it."""
    return replace(_scene_as(seed, 3, "PNG"), name="misnamed-png.jpg")


def _scene_as(seed: int, number: int, image_format: str) -> Scene:
    return draw_scene(seed, number, replace(DEFAULT_STYLE, formats=((image_format, 1.0),), exif_share=0.0))
