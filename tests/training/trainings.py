"""Small trainings on drawn scenes, from the demo's checkpoint at a quarter of its size. Knows no files but that one."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchdet.demo.scenes import SceneStyle, draw_picture
from batchdet.demo.shipped import shipped_model
from batchdet.records import PixelArray
from batchdet.storage.registry import fetch_model
from batchdet.training.config import TrainConfig, load_train
from batchdet.training.loop import StepReport, Trainer
from batchdet.training.order import BatchOrder, plan_order, portion
from batchdet.training.samples import Sample, make_sample
from batchdet.training.student import Student, build_student
from batchdet.training.targets import Target, gold_target
from tests.training.made import NO_BOXES

STYLE = SceneStyle(sizes=((160, 120),), empty_share=0.0)
NUM_GOLD, NUM_PSEUDO = 4, 8
STILL = {"flip": 0.0, "zoom": [1.0, 1.0], "iou_crop": 0.0, "distort": 0.0}
SIDE = 96
CPU = torch.device("cpu")


def job(**changes: object) -> TrainConfig:
    """A job of six steps of four images, without augmentation; `a__b=1` changes the field a.b."""
    fields: dict[str, object] = {
        "source.outputs": ["file:///labels"],
        "gold": {"annotations": "gold.json", "images": "gold", "share": 0.5},
        "start.reference": str(shipped_model()),
        "length": {"steps": 6, "batch_images": 4, "seed": 7},
        "schedule.warmup_steps": 2,
        "augmentation": {"weak": STILL, "strong": STILL},
        "optimiser": {"learning_rate": 0.01, "scaling": "none"},
        "losses.rcnn": {"rpn_anchors": 64, "roi_samples": 32},
    }
    return load_train(None, fields | {name.replace("__", "."): value for name, value in changes.items()})


def demo_student(config: TrainConfig) -> Student:
    student = build_student(config.start, fetch_model(str(shipped_model()), {}), config.length.seed)
    student.model.transform.fixed_size = (SIDE, SIDE)
    return student


@cache
def scene(is_gold: bool, index: int) -> tuple[PixelArray, Target]:
    drawing = draw_picture(np.random.default_rng((int(is_gold), index)), STYLE)
    target = gold_target(torch.from_numpy(drawing.boxes), torch.from_numpy(drawing.labels), NO_BOXES)
    return drawing.pixels, target


def order_of(config: TrainConfig) -> BatchOrder:
    share = config.gold.share if config.gold else 0.0
    return plan_order(NUM_GOLD, NUM_PSEUDO if config.source else 0, share, config.length)


def samples(config: TrainConfig, step: int, rank: int = 0, workers: int = 1) -> list[Sample]:
    draws = portion(order_of(config).batch(step), rank, workers)
    return [
        make_sample(
            f"memory://{draw.is_gold}/{draw.index}", *scene(draw.is_gold, draw.index), draw, config.augmentation
        )
        for draw in draws
    ]


def trainer_of(config: TrainConfig, student: Student | None = None) -> Trainer:
    student = demo_student(config) if student is None else student
    return Trainer(student, config, order_of(config).num_steps(config.length), CPU)


def run(trainer: Trainer, config: TrainConfig, steps: int | None = None, **share: int) -> Iterator[StepReport]:
    """Take steps until the end, or so many."""
    last = trainer.num_steps if steps is None else trainer.step + steps
    while trainer.step < last:
        yield trainer.take(samples(config, trainer.step, **share))


def curve(reports: Sequence[StepReport]) -> list[dict[str, float]]:
    return [dict(report.losses) for report in reports]


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
