"""The sentence of the program, on one machine: list → plan → read → label → commit. Knows no Ray.

`label_bucket` tells the story of a run, `ShardLabeller.label` that of a shard. A runner decides only where shards
are labelled: `InlineRunner` here, `batchdet.cluster.driver.RayRunner` on a cluster.
"""

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

from batchdet.config import ClusterConfig, JobConfig, ModelConfig
from batchdet.engine.acceptance import Candidates, bind
from batchdet.engine.backends.choice import OWN, engine_of
from batchdet.engine.checkpoint import load_detector
from batchdet.engine.detector import Detector
from batchdet.engine.pipeline import Detected, SafeBatches, detect_blocks
from batchdet.engine.postfilter import PostFilter
from batchdet.errors import ConfigError, InterruptedRunError, ModelError, StorageError
from batchdet.profiling import write_trace
from batchdet.progress import Progress
from batchdet.reading import WINDOW_BYTES, BlockSource, ThreadBlocks
from batchdet.records import (
    CopiedImage,
    FailedImage,
    ImageOutcome,
    ImageRef,
    LabelledImage,
    ModelFiles,
    PreparedBlock,
    ShardReport,
)
from batchdet.storage.begun import read_backend, settle_backend
from batchdet.storage.copies import read_copies
from batchdet.storage.filesystem import open_store
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import RunPlan, read_shard
from batchdet.storage.registry import fetch_model
from batchdet.timeline import Timeline, now_ns

_log = logging.getLogger(__name__)

MOST_LABELLERS = 8
"""Labellers in one process: only one of its threads runs Python at a time, and a labeller does for a tenth of its."""
SHARDS_IN_FLIGHT = 2
"""Shards a labeller holds: while one is detected, the next is already read, or the last still committed."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a labeller anywhere needs to label any shard of a run; small, and goes by pickle.

    Attributes:
        profile: write the time line of each shard to the output.
        deadline: seconds since 1970 after which no shard is begun; None for never.
    """

    job: JobConfig
    plan: RunPlan
    profile: bool = False
    deadline: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether no further shard may be begun."""
        return self.deadline is not None and time.time() >= self.deadline


@dataclass(frozen=True, slots=True)
class Hardware:
    """What one labeller has.

    Attributes:
        device: `cpu`, `cuda` or `cuda:<n>`.
        threads: torch's threads, and reading threads.
    """

    device: str
    threads: int


def local_runner(config: ClusterConfig) -> "InlineRunner":
    """The runner of this machine: one labeller on its first GPU if it has one, else as many as its cores hold.

    Raises:
        ConfigError: `cluster.gpus_per_labeller` asks for a GPU and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if config.gpus_per_labeller not in ("auto", 0) and not has_gpu:
        raise ConfigError(f"cluster.gpus_per_labeller is {config.gpus_per_labeller}, and this machine has no GPU")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if has_gpu and config.gpus_per_labeller != 0:
        wanted = cores if config.cpus_per_labeller == "auto" else math.ceil(config.cpus_per_labeller)
        return InlineRunner(Hardware("cuda", wanted))
    threads, labellers = split_cores(config, cores)
    return InlineRunner(Hardware("cpu", threads), labellers)


def split_cores(config: ClusterConfig, cores: int) -> tuple[int, int]:
    """Threads of a labeller and labellers in one process without a GPU; `auto` is a thread each while that is enough.

    Args:
        config: the job's `cluster` section.
        cores: of this machine.
    """
    if config.cpus_per_labeller != "auto":
        threads = math.ceil(config.cpus_per_labeller)
        fitting = max(1, min(cores // threads, MOST_LABELLERS))
        return threads, fitting if config.labellers == "auto" else config.labellers
    labellers = min(cores, MOST_LABELLERS) if config.labellers == "auto" else config.labellers
    return max(1, cores // labellers), labellers


class ShardLabeller:
    """One model, loaded once, that labels shard after shard.

    `label` may be called from several threads: reading and committing then overlap the detection of another shard,
    while detection itself has one thread, so that batches and torch's threads are always the same.
    """

    def __init__(self, context: RunContext, hardware: Hardware, source: BlockSource | None = None) -> None:
        job = context.job
        self._context = context
        self._output = open_store(job.output, job.storage.output)
        self._ledger = Ledger(self._output)
        self._source = source or ThreadBlocks(job, hardware.threads)
        files = fetch_model(job.model.reference, job.storage.source)
        self._stopping = threading.Event()
        self._detecting = ThreadPoolExecutor(1, "detect", torch.set_num_threads, (hardware.threads,))
        self._loaded = Timeline(keeps_spans=True)
        self._detector = self._detecting.submit(self._load, files, hardware).result()
        self._safe = SafeBatches()
        self._detected_ns: int | None = None
        categories = self._detector.info.categories
        self._postfilter = PostFilter(job.policy, categories, job.model.score_floor)
        self._acceptance = bind(job.policy, categories, job.model.score_floor)

    @property
    def backend(self) -> str:
        """What computes the detections, its version and its arithmetic."""
        return self._detector.backend

    def _load(self, files: ModelFiles | None, hardware: Hardware) -> Detector:
        """The detector, in the backend that the run was begun with: another one's scores differ in float noise."""
        job, run_id = self._context.job, self._context.plan.run_id
        with self._loaded.span("load"):
            model = _settled(job.model, read_backend(self._output, run_id))
            detector = load_detector(model, files, hardware.device, hardware.threads)
            begun = settle_backend(self._output, run_id, detector.backend)
            if engine_of(begun) != engine_of(detector.backend):
                # Another labeller of the run, on another machine, was there first.
                detector = load_detector(_settled(job.model, begun), files, hardware.device, hardware.threads)
        _require_backend(detector.backend, begun, run_id)
        return detector

    def label(self, shard_id: int, poison: Mapping[str, FailedImage] | None = None) -> ShardReport:
        """Label one shard and commit it.

        Args:
            shard_id: shard of the run's plan.
            poison: images by URI that are not to be touched, with the failure to record.

        Raises:
            StorageError: the plan cannot be read or the shard not be committed.
        """
        shard = read_shard(self._output, self._context.plan, shard_id)
        poison = poison or {}
        timeline = Timeline(keeps_spans=self._context.profile)
        detected = self.detect([ref for ref in shard.images if ref.uri not in poison], timeline)
        by_uri = {outcome.ref.uri: outcome for outcome in self._with_copies(detected, timeline)} | dict(poison)
        images = [by_uri[ref.uri] for ref in shard.images]
        report = self._ledger.commit(self._context.plan, shard, images, self._detector.backend, timeline)
        if self._context.profile:
            self._write_trace(shard_id, timeline)
        return report

    def _with_copies(self, detected: Sequence[Detected], timeline: Timeline) -> Iterator[ImageOutcome]:
        """The outcomes, where bytes were labelled before with the labels of then."""
        copies = [image for image in detected if isinstance(image, CopiedImage)]
        found = read_copies(self._output, copies, self._context.job.model.score_floor) if copies else {}
        yield from map(self._judged, found.values())
        # their twins are gone since the plan was made
        lost = [replace(image.ref, twins=()) for image in copies if image.ref.uri not in found]
        again = self.detect(lost, timeline) if lost else []
        for image in (*detected, *again):
            if not isinstance(image, CopiedImage):
                yield image

    def _judged(self, image: LabelledImage) -> LabelledImage:
        """A copy by this run's policy, whichever it was labelled under."""
        alone = np.zeros(len(image.scores), np.int64)
        accepted, over = self._acceptance.judge(Candidates(image.boxes, image.scores, image.labels, alone, 1))
        # The flag of then says the model's cap or that policy's, so it stays.
        return replace(image, accepted=accepted, hit_detection_cap=image.hit_detection_cap or bool(over[0]))

    def _write_trace(self, shard_id: int, timeline: Timeline) -> None:
        """Keep a profiled shard's time line; the shard is committed, with or without it."""
        try:
            write_trace(self._output, self._context.plan.run_id, shard_id, timeline.spans)
        except StorageError as error:
            _log.warning("no time line of shard %d: %s", shard_id, error)

    def detect(self, refs: Sequence[ImageRef], timeline: Timeline | None = None) -> list[Detected]:
        """Read and label images without committing; outcomes in order. The bytes of a CopiedImage were labelled before.

        Args:
            refs: the images.
            timeline: added to, when given.
        """
        timeline = Timeline() if timeline is None else timeline
        with self._source.blocks(refs, self._detector.info.input_spec) as blocks:
            return self._detecting.submit(self._detect, blocks, timeline).result()

    def _detect(self, blocks: Iterator[PreparedBlock], timeline: Timeline) -> list[Detected]:
        if self._detected_ns is None:
            timeline.add(self._loaded.spans)
        else:
            timeline.record("between_shards", self._detected_ns, now_ns())
        try:
            until_stopped = self._until_stopped(blocks)
            return list(detect_blocks(until_stopped, self._detector, self._postfilter, timeline, self._safe))
        finally:
            self._detected_ns = now_ns()

    def stop(self) -> None:
        """Take no more work, and make every `label` under way raise InterruptedRunError at its next block."""
        self._stopping.set()
        self._detecting.shutdown(wait=False)

    def _until_stopped(self, blocks: Iterator[PreparedBlock]) -> Iterator[PreparedBlock]:
        for block in blocks:
            if self._stopping.is_set():
                raise InterruptedRunError("stopped")
            yield block


def _settled(model: ModelConfig, begun: str | None) -> ModelConfig:
    """The model in the backend a run was begun with, where the job leaves it a choice."""
    if begun is None or model.backend != "auto":
        return model
    return ModelConfig.model_validate(model.model_dump() | {"backend": engine_of(begun)})


def _require_backend(backend: str, begun: str, run_id: str) -> None:
    """A run is finished with what it was begun with; another version of it is near enough, and said."""
    if backend == begun:
        return
    said = f"run {run_id} was begun with {begun}, and this machine has {backend}"
    if engine_of(backend) != engine_of(begun):
        raise ModelError(f"{said}; finish it where that backend runs, or close it as partial with --new-run")
    _log.warning("%s: scores may differ by float noise", said)


def require_device(job: JobConfig, device: str) -> None:
    """Refuse a backend that does not run where the labellers will, before anything is planned.

    Raises:
        ConfigError: it has CPUs only, and the labellers take GPUs.
    """
    if device != "cpu" and job.model.backend not in OWN:
        raise ConfigError(
            f"model.backend {job.model.backend} runs on CPUs only, and labellers take GPUs here; set "
            "cluster.gpus_per_labeller=0 or model.backend=torch"
        )


class InlineRunner:
    """Labels every shard in this process, by labellers that are no actors.

    Args:
        hardware: of each labeller.
        labellers: how many; no more are loaded than there are shards.
    """

    def __init__(self, hardware: Hardware, labellers: int = 1) -> None:
        self._hardware = hardware
        self._count = labellers

    def ready(self, job: JobConfig, progress: Progress) -> AbstractContextManager[None]:
        """See `batchdet.run.Runner`."""
        require_device(job, self._hardware.device)
        return nullcontext()

    def run(self, context: RunContext, shard_ids: Sequence[int], progress: Progress) -> None:
        """See `batchdet.run.Runner`."""
        if not shard_ids:
            return
        labellers = self._load(context, min(self._count, len(shard_ids)))
        progress.log(f"detecting with {labellers[0].backend} on {self._hardware.device}")
        progress.labellers(alive=len(labellers), wanted=len(labellers))
        handout = _Handout(labellers, shard_ids, context)
        interrupted = False
        try:
            for future in handout.settled():
                self._settle(future, progress)
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            # After Ctrl-C shards under way are not waited for: they stay open, and commits are whole or not at all.
            handout.close(waits=not interrupted)

    def _load(self, context: RunContext, count: int) -> list["ShardLabeller"]:
        def load(_: int) -> ShardLabeller:
            source = ThreadBlocks(context.job, self._hardware.threads, WINDOW_BYTES // count)
            return ShardLabeller(context, self._hardware, source)

        # The first alone: it exports what the others take from this machine's cache.
        first = load(0)
        with ThreadPoolExecutor(count, "load") as pool:
            return [first, *pool.map(load, range(1, count))]

    def _settle(self, future: "Future[ShardReport]", progress: Progress) -> None:
        try:
            report = future.result()
        except StorageError as error:
            progress.log(f"a shard stays open: {error}")
        else:
            progress.shard_committed(report)


class _Handout:
    """Shards on their way through the labellers of this process."""

    def __init__(self, labellers: Sequence[ShardLabeller], shard_ids: Sequence[int], context: RunContext) -> None:
        self._labellers = labellers
        self._todo = deque(shard_ids)
        self._context = context
        self._pool = ThreadPoolExecutor(SHARDS_IN_FLIGHT * len(labellers), "shard")
        self._running: dict[Future[ShardReport], ShardLabeller] = {}

    def settled(self) -> Iterator["Future[ShardReport]"]:
        """Every shard as it ends, until none is left or the run's time is."""
        self._fill()
        while self._running:
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                del self._running[future]
            self._fill()
            yield from done

    def close(self, waits: bool) -> None:
        """Give out no more, and stop the labellers; wait for the shards under way, or leave them open."""
        for labeller in self._labellers:
            labeller.stop()
        self._pool.shutdown(wait=waits, cancel_futures=True)

    def _fill(self) -> None:
        if self._context.is_over:
            return
        attempts = self._context.job.limits.max_attempts_per_shard
        # One shard each before anybody gets a second, and a second only while nobody will want for a first.
        for held in range(SHARDS_IN_FLIGHT):
            for labeller in self._labellers:
                is_spare = held == 0 or len(self._todo) >= len(self._labellers)
                if self._todo and is_spare and list(self._running.values()).count(labeller) == held:
                    shard_id = self._todo.popleft()
                    self._running[self._pool.submit(_persist, labeller, shard_id, attempts)] = labeller


def _persist(labeller: ShardLabeller, shard_id: int, attempts: int) -> ShardReport:
    """Label a shard, again if storage refuses it, at most so many times."""
    for _ in range(attempts - 1):
        try:
            return labeller.label(shard_id)
        except StorageError:
            continue
    return labeller.label(shard_id)
