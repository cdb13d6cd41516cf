"""Prepared images become batches on the detector's device, on a GPU one batch ahead of it. Knows no detector."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from batchdet.engine.detector import Batch
from batchdet.engine.memory import memory_border
from batchdet.records import ImageFacts, ImageRef, IntArray, PreparedGroup, Span
from batchdet.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Waiting:
    """One prepared image and its place in the shard."""

    place: int
    ref: ImageRef
    facts: ImageFacts
    group: PreparedGroup
    index: int

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels."""
        return int(self.group.pixels[self.index].nbytes)


@dataclass(frozen=True, slots=True)
class Staged:
    """A batch and when it was copied.

    Attributes:
        arrived: on a GPU, what the detector's stream has to wait for.
    """

    batch: Batch
    spans: tuple[Span, ...]
    arrived: torch.cuda.Event | None = None

    def wait(self) -> Batch:
        """The batch, for use on the current stream from here on."""
        if self.arrived is not None:
            current = torch.cuda.current_stream(self.batch.pixels.device)
            current.wait_event(self.arrived)
            # The memory must not be handed out again while this stream still reads it.
            self.batch.pixels.record_stream(current)
        return self.batch


class Stager(Protocol):
    """Turns images into a batch, at once or ahead of its use.

    Attributes:
        ahead: batches worth staging before one is used.
    """

    ahead: int

    def stage(self, images: Sequence[Waiting]) -> Callable[[], Staged]:
        """Begin; what is returned waits for the batch.

        Raises:
            OutOfMemoryError: by what is returned: host or device has no memory for the batch.
        """


@contextmanager
def open_stager(device: torch.device, settles: bool = False) -> Iterator[Stager]:
    """The stager for a device.

    Args:
        device: where batches go.
        settles: wait for each copy to a GPU, so that its span says how long it took.
    """
    if device.type != "cuda":
        yield HostStager(device)
        return
    with ThreadPoolExecutor(1, "stage") as thread:
        yield DeviceStager(device, thread, settles)


class HostStager:
    """Makes a batch when it is asked for: another thread gains nothing on the cores that detect."""

    def __init__(self, device: torch.device) -> None:
        self.ahead = 0
        self._device = device

    def stage(self, images: Sequence[Waiting]) -> Callable[[], Staged]:
        """See `Stager`."""
        return partial(self._make, images)

    def _make(self, images: Sequence[Waiting]) -> Staged:
        timeline = Timeline(keeps_spans=True)
        with timeline.span("copy", len(images)), memory_border():
            pixels = _neighbours(images)
            batch = _batch(images, (_stack(images, pinned=False) if pixels is None else pixels).to(self._device))
        return Staged(batch, timeline.spans)


class DeviceStager:
    """Stacks into pinned memory and copies on a stream of its own, in a thread beside the detecting one."""

    def __init__(self, device: torch.device, thread: ThreadPoolExecutor, settles: bool) -> None:
        self.ahead = 1
        self._device = device
        self._thread = thread
        self._settles = settles
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def stage(self, images: Sequence[Waiting]) -> Callable[[], Staged]:
        """See `Stager`."""
        return self._thread.submit(self._make, images).result

    def _make(self, images: Sequence[Waiting]) -> Staged:
        timeline = Timeline(keeps_spans=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with timeline.span("copy", len(images)), memory_border(), torch.cuda.stream(self._stream):
            batch = _batch(images, _stack(images, pinned=True).to(self._device, non_blocking=True))
            arrived.record(self._stream)
            if self._settles:
                arrived.synchronize()
        return Staged(batch, timeline.spans, arrived)


def _neighbours(images: Sequence[Waiting]) -> Tensor | None:
    """[B, 3, H, W] where the images lie one after the other in memory that may be written: nothing is copied."""
    group, start = images[0].group, images[0].index
    follow = all(image.group is group and image.index == start + place for place, image in enumerate(images))
    if not follow or not group.pixels.flags.writeable:
        return None
    return torch.from_numpy(group.pixels[start : start + len(images)])


def _stack(images: Sequence[Waiting], pinned: bool) -> Tensor:
    """[B, 3, H, W] in memory of its own: blocks from an object store are read-only, pinned memory copies faster."""
    shape = (len(images), *images[0].group.pixels.shape[1:])
    pixels = torch.empty(shape, dtype=torch.float32, pin_memory=pinned)
    np.stack([image.group.pixels[image.index] for image in images], out=pixels.numpy())
    return pixels


def _batch(images: Sequence[Waiting], pixels: Tensor) -> Batch:
    return Batch(
        pixels=pixels,
        sizes=tuple(_size(image.group.sizes[image.index]) for image in images),
        original_sizes=tuple(_size(image.group.original_sizes[image.index]) for image in images),
    )


def _size(row: IntArray) -> tuple[int, int]:
    return int(row[0]), int(row[1])
