"""One worker of a training: read, learn, keep. Knows no Ray and no driver; its peers only as torch's process group.

    teach(job, Post(rank=0, workers=1, device="cpu", threads=2), tell)

The plan fixes which images a step takes, for any number of workers and however often the training is begun again, so
each worker reads ahead what its coming steps need. Ray Data is not used for that: it decides by itself who gets which
row, drops rows to make equal shares, and cannot go on in the middle of an epoch.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from batchdet.engine.decode import decode
from batchdet.errors import ConfigError, DecodeError, FailureRateError, ModelError, OutputError, SourceError
from batchdet.examining import Examiner
from batchdet.records import FailedImage, ImageRef, PixelArray
from batchdet.storage.filesystem import open_store
from batchdet.storage.prefetch import prefetch
from batchdet.storage.reader import BlockReader
from batchdet.storage.registry import fetch_model
from batchdet.training.checkpoints import newest_checkpoint, save_checkpoint
from batchdet.training.config import TrainConfig
from batchdet.training.job import RetrainConfig
from batchdet.training.loop import StepReport, Trainer, require_device
from batchdet.training.order import BatchOrder, Draw, portion
from batchdet.training.plan import TrainPlan, read_plan, target_of
from batchdet.training.samples import Sample, make_sample
from batchdet.training.steps import StepLine, StepLog
from batchdet.training.student import Student, build_student
from batchdet.training.terms import everyone

WINDOW_BYTES = 1 << 30
"""Pictures a worker holds ahead of its step, whatever `pictures.steps_ahead` says."""

Tell = Callable[[StepLine], None]
"""Told what each step did; called by the first worker only."""


@dataclass(frozen=True, slots=True)
class Post:
    """A worker's place.

    Attributes:
        rank: from 0, of `workers`.
        device: `cpu` or a GPU, as torch names it.
        threads: cores it has.
    """

    rank: int
    workers: int
    device: str
    threads: int


class Classroom(Protocol):
    """Where a training runs."""

    def teach(self, job: RetrainConfig, tell: Tell) -> None:
        """Take the training from where it stands to its last step; its plan is written.

        Raises:
            UserError, RunError: it cannot go on; the last checkpoint stays.
        """


class InlineClassroom:
    """One worker in this process: its first GPU, or as many of its cores as the job says."""

    def teach(self, job: RetrainConfig, tell: Tell) -> None:
        """See `Classroom`."""
        threads = len(os.sched_getaffinity(0)) if job.workers.cpus == "auto" else job.workers.cpus
        teach(job, Post(0, 1, self.device(job), threads), tell)

    def device(self, job: RetrainConfig) -> str:
        """Where the worker learns.

        Raises:
            ConfigError: the job asks for a GPU, or for what only GPUs do, and this machine has none.
        """
        has_gpu = torch.cuda.is_available() and job.workers.gpus != 0
        if job.workers.gpus == 1 and not has_gpu:
            raise ConfigError("workers.gpus is 1, and this machine has no GPU")
        device = "cuda" if has_gpu else "cpu"
        require_device(job.network, device)
        return device


def teach(job: RetrainConfig, post: Post, tell: Tell) -> None:
    """Take the remaining steps of a training; every worker of the process group calls it.

    Args:
        job: its plan lies in its output.
        post: this worker's place.
        tell: see `Tell`.

    Raises:
        DivergedError: a loss is not a finite number.
        FailureRateError: too many pictures were skipped.
        ModelError, ConfigError, SourceError: the training cannot begin or go on.
        StorageError: a checkpoint cannot be read or written.
    """
    torch.set_num_threads(post.threads)
    output = open_store(job.output, job.storage.output)
    plan = read_plan(output)
    if plan is None:
        raise OutputError(f"output {output.uri}: holds no plan of a training; does every worker see it?")
    config = plan.effective(job.training)
    order = plan.order(config)
    trainer = begin(plan, config, job, torch.device(post.device))
    state = newest_checkpoint(output)
    if state is not None:
        trainer.load_state(state)
    pictures = _Pictures(job, config, plan, order, post)
    kept = _Kept(job, StepLog(output, with_events=job.tensorboard), post, tell)
    examiner = Examiner(job, plan.facts.categories, post.rank, post.workers) if job.held_out.every_steps else None
    threads = post.threads if job.pictures.threads == "auto" else job.pictures.threads
    ahead = prefetch(
        range(trainer.step, trainer.num_steps), pictures.load, job.pictures.steps_ahead, WINDOW_BYTES, threads
    )
    with closing(ahead):
        for lot in ahead:
            report = trainer.take(lot.samples)
            skipped = gathered(lot.skipped)
            images = tuple(plan.uri(draw.is_gold, draw.index) for draw in order.batch(report.step - 1))
            score = examiner.examine(trainer) if examiner is not None and examiner.is_due(trainer) else None
            kept.note(replace(_line(report, trainer, order, images, skipped), map=score))
            if report.step % job.checkpoints.every_steps == 0 or report.step == trainer.num_steps:
                kept.checkpoint(trainer)


def begin(plan: TrainPlan, config: TrainConfig, job: RetrainConfig, device: torch.device) -> Trainer:
    """The training before its first step.

    Args:
        plan: what it learns from.
        config: the effective job.
        job: where the teacher is read with which options.
        device: of the student.

    Raises:
        ModelError: the teacher cannot be had, or is not the one of the plan.
    """
    student = open_student(config, job)
    found = None if student.parent is None else student.parent.digest
    if found != plan.facts.teacher_digest:
        raise ModelError(f"start.reference {config.start.reference}: another model than when the training began")
    return Trainer(student, config, plan.order(config).num_steps(config.length), device)


def open_student(config: TrainConfig, job: RetrainConfig) -> Student:
    """The model a training starts from.

    Raises:
        ModelError: it cannot be had.
    """
    files = None
    if config.start.weights == "teacher":
        files = fetch_model(config.start.reference or "", job.storage.source)
    return build_student(config.start, files, config.length.seed)


@dataclass(frozen=True, slots=True)
class _Lot:
    """This worker's part of one step."""

    samples: tuple[Sample, ...]
    skipped: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        return sum(sample.view.picture.nbytes for sample in self.samples)


class _Pictures:
    """Reads, checks, decodes and changes the pictures of a step; called from several threads."""

    def __init__(self, job: RetrainConfig, config: TrainConfig, plan: TrainPlan, order: BatchOrder, post: Post) -> None:
        self._config = config
        self._plan = plan
        self._order = order
        self._post = post
        self._max_pixels = job.pictures.max_pixels
        self._reader = BlockReader(job.storage.source)

    def load(self, step: int) -> _Lot:
        """This worker's samples of a step; what cannot be learned from is left out and said."""
        draws = portion(self._order.batch(step), self._post.rank, self._post.workers)
        rows = [self._plan.row(draw.is_gold, draw.index) for draw in draws]
        samples, skipped = [], {}
        for draw, row, read in zip(
            draws, rows, self._reader.fetch([ImageRef(row["image_uri"]) for row in rows]), strict=True
        ):
            if isinstance(read, FailedImage):
                skipped[read.ref.uri] = read.code
                continue
            try:
                samples.append(self._sample(draw, row, read.data))
            except DecodeError as error:
                skipped[read.ref.uri] = error.code
        return _Lot(tuple(samples), skipped)

    def _sample(self, draw: Draw, row: Mapping[str, Any], data: bytes) -> Sample:
        digest = row.get("content_digest")
        # Stronger than an etag, which says nothing on a disk and costs a request elsewhere.
        if digest is not None and digest != "sha256:" + hashlib.sha256(data).hexdigest():
            raise DecodeError("changed", "its bytes are not those that were labelled")
        pixels: PixelArray = decode(data, self._max_pixels).pixels
        return make_sample(row["image_uri"], pixels, target_of(row, self._config), draw, self._config.augmentation)


def gathered(own: Mapping[str, str]) -> dict[str, str]:
    """What every worker skipped in this step, on every worker."""
    return {uri: why for part in everyone(dict(own)) for uri, why in part.items()}


def _line(
    report: StepReport, trainer: Trainer, order: BatchOrder, images: tuple[str, ...], skipped: Mapping[str, str]
) -> StepLine:
    return StepLine(
        step=report.step,
        num_steps=trainer.num_steps,
        epoch=round(report.step / order.steps_per_epoch, 4),
        losses=dict(report.losses),
        learning_rate=report.learning_rate,
        gradient_norm=report.gradient_norm,
        images=images,
        skipped=dict(skipped),
        seconds=0.0,
    )


@dataclass
class _Kept:
    """Steps told, logged and made last; and what was skipped, held against the limit. The same on every worker."""

    job: RetrainConfig
    log: StepLog
    post: Post
    tell: Tell
    skipped: int = 0
    clock: float = field(default_factory=time.monotonic)

    def note(self, line: StepLine) -> None:
        self.skipped += len(line.skipped)
        now = time.monotonic()
        timed = replace(line, seconds=round(now - self.clock, 4))
        self.clock = now
        if self.post.rank == 0:
            self.log.add(timed)
            self.tell(timed)
        self._require_pictures(line)

    def checkpoint(self, trainer: Trainer) -> None:
        if self.post.rank == 0:
            self.log.write()
            save_checkpoint(self.log.output, trainer.state(), self.job.checkpoints.kept)

    def _require_pictures(self, line: StepLine) -> None:
        if set(line.skipped) == set(line.images):
            raise SourceError(f"step {line.step}: no image of the batch could be read, such as {_first(line.skipped)}")
        rate = self.job.pictures.max_failure_rate
        if self.skipped > rate * line.num_steps * len(line.images):
            raise FailureRateError(
                f"step {line.step}: {self.skipped} pictures were skipped, more than pictures.max_failure_rate {rate:g} "
                f"allows, such as {_first(line.skipped)}; label the images again, or raise the limit"
            )


def _first(skipped: Mapping[str, str]) -> str:
    return ", ".join(f"{uri} ({why})" for uri, why in list(skipped.items())[:1])
