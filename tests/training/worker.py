"""One of several workers that train together on the CPU: run by test_workers."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from batchdet.training.config import StartConfig, TrainConfig
from batchdet.training.samples import Sample
from batchdet.training.state import write_state
from batchdet.training.student import Student, build_student
from tests.training.trainings import curve, demo_student, job, run, samples, trainer_of

CONFIG = job(
    augmentation__strong={"flip": 0.5}, length__steps=5, optimiser={"learning_rate": 1e-3, "max_gradient_norm": None}
)
"""Flips keep the pictures' shapes: in an R-CNN batch-mates of other shapes change the padding. Gradients are not
clipped: that would hide a wrong factor of all of them.
"""


DOUBLE = job(length__steps=16, optimiser={"learning_rate": 1e-3, "scaling": "none"})
"""Long enough for float noise to grow a thousandfold, were there any."""


def students(config: TrainConfig) -> dict[str, Student]:
    """An SSD and a Faster R-CNN, both small."""
    start = StartConfig(
        weights="scratch",
        architecture="fasterrcnn_mobilenet_v3_large_320_fpn",
        categories=demo_student(config).categories,
    )
    rcnn = build_student(start, None, config.length.seed)
    rcnn.model.transform.min_size, rcnn.model.transform.max_size = (96,), 128
    return {"ssd": demo_student(config), "rcnn": rcnn}


def train(folder: Path, rank: int, workers: int) -> None:
    """Train each; the first worker leaves curves and states."""
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    for name, student in students(CONFIG).items():
        trainer = trainer_of(CONFIG, student)
        reports = list(run(trainer, CONFIG, rank=rank, workers=workers))
        (folder / f"{name}-{rank}.json").write_text(json.dumps(curve(reports)))
        if rank == 0:
            write_state(trainer.state(), folder / name)
    (folder / f"double-{rank}.json").write_text(json.dumps(double_curve(rank, workers)))
    if workers > 1:
        dist.destroy_process_group()


def double_curve(rank: int, workers: int) -> list[dict[str, float]]:
    """Losses of a training in which all numbers are doubles."""
    with _doubles():
        student = demo_student(DOUBLE)
        student.model.double()
        trainer = trainer_of(DOUBLE, student)
        reports = []
        while trainer.step < trainer.num_steps:
            reports.append(trainer.take([_double(one) for one in samples(DOUBLE, trainer.step, rank, workers)]))
    return curve(reports)


@contextmanager
def _doubles() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _double(sample: Sample) -> Sample:
    view = sample.view
    target = replace(
        view.target,
        boxes=view.target.boxes.double(),
        weights=view.target.weights.double(),
        ignored=view.target.ignored.double(),
    )
    return replace(sample, view=replace(view, picture=view.picture.double() / 255, target=target))


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
