"""Blocks read by Ray tasks, wherever the cluster has free CPUs. Knows no detector and no ledger."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, WorkerCrashedError

from batchdet.config import JobConfig
from batchdet.reading import WINDOW_BYTES, cut_blocks, read_block
from batchdet.records import FailedImage, ImageFacts, ImageRef, InputSpec, PreparedBlock
from batchdet.storage.reader import BlockReader

DEATHS = (WorkerCrashedError, OutOfMemoryError, NodeDiedError)


@ray.remote
def read_remotely(job: JobConfig, refs: Sequence[ImageRef], spec: InputSpec) -> PreparedBlock:
    """`read_block` as a Ray task."""
    return read_block(BlockReader(job.storage.source, max_bytes=job.plan.max_bytes), refs, spec, job)


class TaskBlocks:
    """Keeps a bounded window of read tasks in flight for one labeller."""

    def __init__(self, job: JobConfig) -> None:
        self._job = job

    @contextmanager
    def blocks(self, refs: Sequence[ImageRef], spec: InputSpec) -> Iterator[Iterator[PreparedBlock]]:
        """See `batchdet.reading.BlockSource`."""
        window = _Window(self._job, cut_blocks(refs, self._job.reading.block_images), spec)
        window.fill()
        try:
            yield window.drain()
        finally:
            window.cancel()


class _Window:
    """Read tasks in plan order, bounded by count and by the bytes of the blocks seen so far."""

    def __init__(self, job: JobConfig, todo: Iterator[Sequence[ImageRef]], spec: InputSpec) -> None:
        self._job = job
        self._todo = todo
        self._spec = spec
        self._flying: deque[tuple[Sequence[ImageRef], ray.ObjectRef[PreparedBlock]]] = deque()
        self._largest = 1

    def fill(self) -> None:
        room = min(self._job.reading.prefetch_blocks, max(1, WINDOW_BYTES // self._largest))
        for refs in itertools.islice(self._todo, max(0, room - len(self._flying))):
            self._flying.append((refs, self._submit(refs)))

    def drain(self) -> Iterator[PreparedBlock]:
        while self._flying:
            refs, flying = self._flying.popleft()
            for block in self._survivors(refs, flying):
                self._largest = max(self._largest, block.nbytes)
                self.fill()
                yield block

    def cancel(self) -> None:
        for _, flying in self._flying:
            ray.cancel(flying, force=False)
        self._flying.clear()

    def _submit(self, refs: Sequence[ImageRef]) -> "ray.ObjectRef[PreparedBlock]":
        # Ray runs a read again that lost its worker, before the block is halved.
        retries = self._job.limits.max_attempts_per_shard - 1
        options = {"num_cpus": self._job.cluster.cpus_per_reader, "max_retries": retries}
        return read_remotely.options(**options).remote(self._job, list(refs), self._spec)

    def _survivors(self, refs: Sequence[ImageRef], flying: "ray.ObjectRef[PreparedBlock]") -> Iterator[PreparedBlock]:
        """The block; or, where it kills its workers, its parts in order with the killing image failed."""
        try:
            yield ray.get(flying)
        except DEATHS as error:
            if len(refs) == 1:
                yield _died(refs[0], self._job.limits.max_attempts_per_shard, error)
                return
            middle = len(refs) // 2
            for half in (refs[:middle], refs[middle:]):
                yield from self._survivors(half, self._submit(half))


def _died(ref: ImageRef, attempts: int, error: RayError) -> PreparedBlock:
    reason = f"reading it ended {attempts} worker processes ({type(error).__name__})"
    failed = FailedImage(ref, "decode", "worker_died", reason)
    return PreparedBlock(refs=(ref,), facts=(ImageFacts(),), settled={0: failed}, groups=())
