"""The images of a shard become prepared blocks: fetched, decoded, resized, in plan order. Knows no detector.

Loads no torch: a reader on any node starts in a moment and stays small.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from typing import Protocol

from batchdet.config import JobConfig
from batchdet.engine.prepare import prepare_block
from batchdet.engine.scale import SCALES
from batchdet.records import ImageRef, InputSpec, PreparedBlock
from batchdet.storage.prefetch import prefetch
from batchdet.storage.reader import BlockReader
from batchdet.timeline import Timeline

WINDOW_BYTES = 1 << 30
"""Pixels a labeller holds ahead of its detector, whatever `reading.prefetch_blocks` says."""


BLOCK_BYTES = 64 << 20
"""Bytes of files in a block: they are all held until the last is there."""
UNKNOWN_BYTES = 2 << 20
"""What an image is taken for that the listing states no size of."""


class BlockSource(Protocol):
    """Where the blocks of a shard are read."""

    def blocks(self, refs: Sequence[ImageRef], spec: InputSpec) -> AbstractContextManager[Iterator[PreparedBlock]]:
        """Begin to read at once, ahead of the consumer and within bounds; blocks come in plan order."""


def read_block(reader: BlockReader, refs: Sequence[ImageRef], spec: InputSpec, job: JobConfig) -> PreparedBlock:
    """Fetch, decode and resize one block: what every reader does, wherever it runs."""
    timeline = Timeline(keeps_spans=True)
    with timeline.span("read", len(refs)):
        encoded = reader.fetch(refs)
    with timeline.span("decode", len(refs)):
        block = prepare_block(encoded, spec, job.plan.max_pixels, SCALES[job.reading.decode])
    return replace(block, spans=timeline.spans)


def cut_blocks(refs: Sequence[ImageRef], block_images: int) -> Iterator[Sequence[ImageRef]]:
    """The images of a shard in blocks of so many, or of fewer where they are large; plan order kept."""
    start, nbytes = 0, 0
    for place, ref in enumerate(refs):
        size = UNKNOWN_BYTES if ref.size_bytes is None else ref.size_bytes
        if place > start and (place - start == block_images or nbytes + size > BLOCK_BYTES):
            yield refs[start:place]
            start, nbytes = place, 0
        nbytes += size
    if start < len(refs):
        yield refs[start:]


class ThreadBlocks:
    """Reads blocks in threads of this process.

    Args:
        job: what to read, and how.
        threads: of each shard under way.
        window_bytes: pixels of a shard held ahead of the detector.
    """

    def __init__(self, job: JobConfig, threads: int, window_bytes: int = WINDOW_BYTES) -> None:
        self._job = job
        self._threads = threads
        self._window_bytes = window_bytes
        self._reader = BlockReader(job.storage.source, max_bytes=job.plan.max_bytes)

    @contextmanager
    def blocks(self, refs: Sequence[ImageRef], spec: InputSpec) -> Iterator[Iterator[PreparedBlock]]:
        """See `BlockSource`."""

        def load(block: Sequence[ImageRef]) -> PreparedBlock:
            return read_block(self._reader, block, spec, self._job)

        reading = self._job.reading
        ahead = prefetch(
            cut_blocks(refs, reading.block_images),
            load,
            depth=reading.prefetch_blocks,
            max_bytes=self._window_bytes,
            threads=self._threads,
        )
        with closing(ahead):
            yield ahead
