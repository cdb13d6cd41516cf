"""Prepared blocks to one outcome an image, in plan order. Knows no storage, no cluster and no family of models.

Who shares a batch follows from the order of the images alone, never from timing or block borders: images are taken in
plan order, wait with others of their padded shape, and are detected when the batch is full, when too much waits, or at
the end of the shard. So a neighbour's padding never reaches an image, and a resumed shard gives the same rows.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from batchdet.engine.detector import Detector
from batchdet.engine.memory import memory_border
from batchdet.engine.postfilter import PostFilter, Verdict
from batchdet.engine.staging import Staged, Stager, Waiting, open_stager
from batchdet.errors import OutOfMemoryError
from batchdet.records import (
    FailedImage,
    LabelledImage,
    PreparedBlock,
    Settled,
)
from batchdet.timeline import Timeline

MAX_WAITING_BATCHES = 8
"""Images waiting for others of their shape, in full batches; beyond it the shape that waits longest is detected."""
MAX_WAITING_BYTES = 1 << 30
"""The same bound in bytes of pixels."""

_log = logging.getLogger(__name__)
_Shape = tuple[int, int]

Detected = LabelledImage | Settled
"""What became of an image: labelled, or settled before it came here."""


@dataclass(frozen=True, slots=True)
class SafeBatches:
    """What a device turned out to have memory for; belongs to the detector, and outlives its shards.

    In which shard memory runs out is the device's doing, not the plan's: from then on equal runs are equal but for
    float noise, no longer bit for bit.

    Attributes:
        images: most images of a padded shape (height, width) in one forward pass, where that is under `batch_images`.
    """

    images: dict[_Shape, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Batcher:
    """Images waiting for others of their padded shape."""

    batch_images: int
    safe: SafeBatches
    queues: dict[_Shape, list[Waiting]] = field(default_factory=dict)
    count: int = 0
    nbytes: int = 0

    def add(self, image: Waiting) -> Iterator[list[Waiting]]:
        """Take one image; yields the batches this makes due."""
        height, width = image.group.pixels.shape[2:]
        shape = (height, width)
        self.queues.setdefault(shape, []).append(image)
        self.count += 1
        self.nbytes += image.nbytes
        if len(self.queues[shape]) >= self.limit(shape):
            yield self._take(shape)
        while self.count > MAX_WAITING_BATCHES * self.batch_images or self.nbytes > MAX_WAITING_BYTES:
            yield self._take(self._oldest())

    def flush(self) -> Iterator[list[Waiting]]:
        """What is left, oldest first."""
        while self.queues:
            yield self._take(self._oldest())

    def limit(self, shape: _Shape) -> int:
        """Images of this shape that go into one forward pass."""
        return self.safe.images.get(shape, self.batch_images)

    def _oldest(self) -> _Shape:
        return min(self.queues, key=lambda shape: self.queues[shape][0].place)

    def _take(self, shape: _Shape) -> list[Waiting]:
        images = self.queues.pop(shape)
        self.count -= len(images)
        self.nbytes -= sum(image.nbytes for image in images)
        return images


def detect_blocks(
    blocks: Iterable[PreparedBlock],
    detector: Detector,
    postfilter: PostFilter,
    timeline: Timeline | None = None,
    safe: SafeBatches | None = None,
) -> Iterator[Detected]:
    """Every image of a shard's blocks as exactly one outcome, in plan order.

    A batch the device has no memory for is halved, and batches of that padded shape stay as small for as long as
    `safe` lives. Rows stay the same but for float noise: an image shares its batch with none but its padded shape, so
    how many neighbours it has decides only in which order a kernel adds. An image too large alone becomes a
    FailedImage of stage `detect`, code `out_of_memory`. An image for which the network gives numbers that are not
    finite (`Detections.finite`) becomes one of code `non_finite`.

    Args:
        blocks: of one shard, in plan order.
        detector: gets batches of one padded shape, never of more than `batch_images`.
        postfilter: the policy.
        timeline: added to, when given.
        safe: batch sizes found out before with this detector, added to; None starts without.
    """
    timeline = Timeline() if timeline is None else timeline
    batcher = _Batcher(detector.batch_images, SafeBatches() if safe is None else safe)
    with open_stager(detector.device, settles=timeline.keeps_spans) as stager:
        run = _ShardRun(detector, postfilter, timeline, batcher, stager)
        for block in _timed(blocks, timeline):
            run.take(block)
            yield from run.ready()
        run.finish()
        yield from run.ready()


@dataclass(slots=True)
class _ShardRun:
    detector: Detector
    postfilter: PostFilter
    timeline: Timeline
    batcher: _Batcher
    stager: Stager
    staged: deque[tuple[Sequence[Waiting], Callable[[], Staged]]] = field(default_factory=deque)
    outcomes: dict[int, Detected] = field(default_factory=dict)
    taken: int = 0
    given: int = 0

    def take(self, block: PreparedBlock) -> None:
        prepared = {
            int(position): (group, index) for group in block.groups for index, position in enumerate(group.positions)
        }
        for position, (ref, facts) in enumerate(zip(block.refs, block.facts, strict=True)):
            place = self.taken
            self.taken += 1
            if position in block.settled:
                self.outcomes[place] = block.settled[position]
                continue
            group, index = prepared[position]
            for images in self.batcher.add(Waiting(place, ref, facts, group, index)):
                self._stage(images)

    def finish(self) -> None:
        for images in self.batcher.flush():
            self._stage(images)
        while self.staged:
            self._detect(*self.staged.popleft())

    def ready(self) -> Iterator[Detected]:
        while self.given in self.outcomes:
            yield self.outcomes.pop(self.given)
            self.given += 1

    def _stage(self, images: Sequence[Waiting]) -> None:
        self.staged.append((images, self.stager.stage(images)))
        if len(self.staged) > self.stager.ahead:
            self._detect(*self.staged.popleft())

    def _detect(self, images: Sequence[Waiting], staged: Callable[[], Staged]) -> None:
        height, width = images[0].group.pixels.shape[2:]
        # What was staged before a refusal may be too large by now.
        fits = len(images) <= self.batcher.limit((height, width))
        rest = self._attempt(images, staged) if fits else images
        while rest:
            part, rest = rest[: self.batcher.limit((height, width))], rest[self.batcher.limit((height, width)) :]
            self._detect(part, self.stager.stage(part))

    def _attempt(self, images: Sequence[Waiting], staged: Callable[[], Staged]) -> Sequence[Waiting]:
        """One forward pass; the images still to detect, in smaller batches."""
        height, width = images[0].group.pixels.shape[2:]
        with self.timeline.span("detect", len(images)):
            try:
                self._forward(images, staged)
            except OutOfMemoryError as error:
                return images[self._make_smaller(images, (height, width), error) :]
        return ()

    def _forward(self, images: Sequence[Waiting], staged: Callable[[], Staged]) -> None:
        batch = staged()
        self.timeline.add(batch.spans)
        with self.timeline.span("forward", len(images)), memory_border():
            detections = self.detector.detect(batch.wait()).cpu()
        with self.timeline.span("post_filter", len(images)):
            verdict = self.postfilter(detections)
        for image, outcome in zip(images, _outcomes(images, verdict), strict=True):
            self.outcomes[image.place] = outcome

    def _make_smaller(self, images: Sequence[Waiting], shape: _Shape, error: OutOfMemoryError) -> int:
        """Halve what fits of this shape; returns how many images are done with, which is one when it was alone."""
        height, width = shape
        if len(images) == 1:
            image = images[0]
            reason = f"one image of {width} x {height} does not fit the device: {error}"
            self.outcomes[image.place] = FailedImage(image.ref, "detect", "out_of_memory", reason, image.facts)
            return 1
        self.batcher.safe.images[shape] = len(images) // 2
        _log.warning(
            "out of memory with %d images of %d x %d; going on with %d", len(images), width, height, len(images) // 2
        )
        return 0


def _timed(blocks: Iterable[PreparedBlock], timeline: Timeline) -> Iterator[PreparedBlock]:
    iterator = iter(blocks)
    while True:
        with timeline.span("idle"):
            block = next(iterator, None)
        if block is None:
            return
        timeline.add(block.spans)
        yield block


def _outcomes(images: Sequence[Waiting], verdict: Verdict) -> Iterator[Detected]:
    """One outcome an image, in batch order."""
    found = verdict.detections
    boxes, scores, labels = found.boxes.numpy(), found.scores.numpy(), found.labels.numpy()
    accepted, capped, finite = verdict.accepted.numpy(), verdict.capped.tolist(), found.finite.tolist()
    edges = np.searchsorted(found.image_index.numpy(), np.arange(len(images) + 1)).tolist()
    for index, image in enumerate(images):
        if not finite[index]:
            reason = "the network gave numbers that are not finite"
            yield FailedImage(image.ref, "detect", "non_finite", reason, image.facts)
            continue
        rows = slice(edges[index], edges[index + 1])
        yield LabelledImage(
            image.ref, image.facts, boxes[rows], scores[rows], labels[rows], accepted[rows], capped[index]
        )
