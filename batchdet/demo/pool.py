"""Drawn scenes at a detector's input size, and batches of them to train on. Knows no model.

Shape shorthand: N scenes, B images of a batch, T true objects of one image.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from batchdet.demo.scenes import draw_picture
from batchdet.records import FloatArray, IntArray, PixelArray

INPUT_SIDE = 320


@dataclass(frozen=True, slots=True)
class Pool:
    """Drawn scenes at the model's input size.

    Attributes:
        pixels: [N, 320, 320, 3] uint8.
        boxes: N × [T, 4] xyxy as shares of the side.
        labels: N × [T].
    """

    pixels: PixelArray
    boxes: tuple[FloatArray, ...]
    labels: tuple[IntArray, ...]


def draw_pool(seed: int, count: int, processes: int) -> Pool:
    """Scenes of a seed, each stretched to the input size as the model's own transform would."""
    if processes == 1:
        drawn = [_draw_one(seed, number) for number in range(count)]
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as executor:
            drawn = list(executor.map(_draw_one, [seed] * count, range(count), chunksize=16))
    pictures, boxes, labels = zip(*drawn, strict=True)
    return Pool(np.stack(pictures), boxes, labels)


def _draw_one(seed: int, number: int) -> tuple[PixelArray, FloatArray, IntArray]:
    drawing = draw_picture(np.random.default_rng((seed, number)))
    height, width = drawing.pixels.shape[:2]
    planes = torch.from_numpy(drawing.pixels).permute(2, 0, 1)[None].float()
    planes = functional.interpolate(planes, size=(INPUT_SIDE, INPUT_SIDE), mode="bilinear", align_corners=False)
    picture = planes[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    extent = np.array([width, height, width, height], np.float32)
    return picture, drawing.boxes / extent, drawing.labels


def make_batch(
    pool: Pool, chosen: IntArray, side: int, rng: np.random.Generator
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Pictures [B, 3, side, side] normalised for ssdlite, and targets in pixels; turned, mirrored and recoloured.

    The drawn categories look the same mirrored and turned by quarters, and no colour belongs to one of them.
    """
    pictures = np.empty((len(chosen), INPUT_SIDE, INPUT_SIDE, 3), np.uint8)
    targets = []
    for place, number in enumerate(chosen):
        picture, boxes = pool.pixels[number], pool.boxes[number]
        if rng.random() < 0.5:
            picture, boxes = picture.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
        if rng.random() < 0.5:
            picture, boxes = picture[:, ::-1], np.abs(boxes[:, [2, 1, 0, 3]] - np.array([1, 0, 1, 0], np.float32))
        if rng.random() < 0.5:
            picture, boxes = picture[::-1], np.abs(boxes[:, [0, 3, 2, 1]] - np.array([0, 1, 0, 1], np.float32))
        pictures[place] = picture[:, :, rng.permutation(3)]
        targets.append(
            {"boxes": torch.from_numpy(boxes * np.float32(side)), "labels": torch.from_numpy(pool.labels[number])}
        )
    gain = torch.from_numpy(rng.uniform(0.75, 1.25, (len(chosen), 1, 1, 1)).astype(np.float32))
    return to_planes(pictures, side).mul_(gain), targets


def to_planes(pictures: PixelArray, side: int) -> Tensor:
    """Pictures [B, 320, 320, 3] as what ssdlite's backbone takes: [B, 3, side, side] in [-1, 1], channels last."""
    planes = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().mul_(1 / 127.5).sub_(1.0)
    if side != INPUT_SIDE:
        planes = functional.interpolate(planes, size=(side, side), mode="bilinear", antialias=True)
    return planes.contiguous(memory_format=torch.channels_last)
