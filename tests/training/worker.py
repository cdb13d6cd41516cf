"""One of several workers that train together on the CPU: run by test_workers."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from batchdet.training.config import StartConfig, TrainConfig
from batchdet.training.state import write_state
from batchdet.training.student import Student, build_student
from tests.training.trainings import curve, demo_student, job, run, trainer_of

CONFIG = job(
    augmentation__strong={"flip": 0.5}, length__steps=5, optimiser={"learning_rate": 1e-3, "max_gradient_norm": None}
)
"""Flips keep the pictures' shapes: in an R-CNN batch-mates of other shapes change the padding. Gradients are not
clipped: that would hide a wrong factor of all of them.
"""


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
    if workers > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
