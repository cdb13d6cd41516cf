"""Trains the demo's checkpoint: `python -m batchdet.demo.train_checkpoint --to FOLDER`. Knows no storage.

Trains torchvision's ssdlite320 from random weights on drawn scenes with the model's own loss. Most steps see
small pictures: a fully convolutional detector learns shapes there at a fraction of the cost, and only the last part
of the time is spent at the size it is used at.
"""

import argparse
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from batchdet.demo.card import write_model_folder
from batchdet.demo.pool import INPUT_SIDE, Pool, draw_pool, make_batch, to_planes
from batchdet.demo.shapes import SHAPES
from batchdet.demo.truth import ImageFindings, ImageTruth, TruthScore, score_against_truth
from batchdet.engine.detector import BACKGROUND

log = logging.getLogger(__name__)

CATEGORIES = (BACKGROUND, *SHAPES)
SCORE_FLOOR = 0.05
TRAINING_SEED = 20_260
VALIDATION_SEED = 20_261
METRICS_SEED = 20_262
_VALIDATION_SCENES = 160
_METRICS_SCENES = 300
_REPORT_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Stage:
    """Part of the training: until this share of the time, pictures of this side in batches of this many."""

    until: float
    side: int
    batch_images: int


STAGES = (Stage(0.48, 128, 32), Stage(0.7, 192, 32), Stage(1.0, INPUT_SIDE, 16))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the training is done.

    Attributes:
        minutes: length of the training itself, after drawing.
        scenes: how many different ones are drawn for training.
        peak_rate, weight_decay: of AdamW; the rate warms up, then falls along a cosine.
        average: share of the old weights kept in the moving average at each step.
    """

    minutes: float = 41.0
    scenes: int = 3000
    peak_rate: float = 2e-3
    weight_decay: float = 0.03
    average: float = 0.99


def new_model() -> SSD:
    """An ssdlite320 for the drawn categories with random weights."""
    model: SSD = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=len(CATEGORIES), score_thresh=SCORE_FLOOR
    )
    for layer in model.backbone.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return model.to(memory_format=torch.channels_last)


def loss_of(model: SSD, pictures: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    """The SSD loss of torchvision, without its transform: the pictures are already what the backbone takes."""
    features = list(model.backbone(pictures).values())
    outputs = model.head(features)
    default_boxes = model.anchor_generator(_image_list(pictures), features)
    matched = [
        model.proposal_matcher(box_iou(target["boxes"], boxes))
        if len(target["boxes"])
        else torch.full((len(boxes),), -1, dtype=torch.int64)
        for target, boxes in zip(targets, default_boxes, strict=True)
    ]
    losses = model.compute_loss(targets, outputs, default_boxes, matched)
    total: Tensor = losses["bbox_regression"] + losses["classification"]
    return total


def _image_list(pictures: Tensor) -> ImageList:
    height, width = pictures.shape[-2:]
    return ImageList(pictures, [(height, width)] * len(pictures))


@torch.inference_mode()
def evaluate(model: SSD, pool: Pool, side: int) -> TruthScore:
    """Average precision on a pool, with torchvision's own post-processing."""
    model.eval()
    truth, findings = {}, {}
    for start in range(0, len(pool.boxes), 16):
        pictures = to_planes(pool.pixels[start : start + 16], side)
        features = list(model.backbone(pictures).values())
        images = _image_list(pictures)
        found = model.postprocess_detections(
            model.head(features), model.anchor_generator(images, features), images.image_sizes
        )
        for number, detections in enumerate(found, start=start):
            truth[str(number)] = ImageTruth(pool.boxes[number] * np.float32(side), pool.labels[number])
            findings[str(number)] = ImageFindings(
                detections["boxes"].numpy(), detections["scores"].numpy(), detections["labels"].numpy()
            )
    return score_against_truth(truth, findings, CATEGORIES)


class MovingAverage:
    """A smoothed copy of a model: weights and batch statistics averaged over the last steps."""

    def __init__(self, model: SSD, keep: float) -> None:
        self.model = new_model().eval().requires_grad_(False)
        self.model.load_state_dict(model.state_dict())
        self._keep = keep
        self._steps = 0

    @torch.no_grad()
    def update(self, model: SSD) -> None:
        """Take one more step into the average; the first steps count more, so that random weights fade."""
        self._steps += 1
        keep = min(self._keep, self._steps / (self._steps + 10))
        for mine, theirs in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - keep)
            else:
                mine.copy_(theirs)


class Training:
    """One training by the clock: the rate and the picture size follow the share of the time that has passed."""

    def __init__(self, recipe: Recipe, scenes: Pool, validation: Pool, folder: Path) -> None:
        self.recipe = recipe
        self.scenes = scenes
        self.validation = validation
        self.folder = folder
        self.rng = np.random.default_rng(TRAINING_SEED)
        self.model = new_model()
        self.average = MovingAverage(self.model, recipe.average)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay, fused=True
        )
        self.steps = 0
        self.images = 0
        self.best = -1.0

    def run(self) -> None:
        """Train for the recipe's minutes; report now and then, keep the best average of the final size."""
        begun = reported = time.monotonic()
        losses: list[float] = []
        while (share := (time.monotonic() - begun) / (self.recipe.minutes * 60)) < 1.0:
            losses.append(self._step(share))
            if time.monotonic() - reported >= _REPORT_SECONDS:
                self._report(share, losses)
                losses.clear()
                reported = time.monotonic()
        self._report(1.0, losses)

    def _step(self, share: float) -> float:
        stage = _stage(share)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.peak_rate * _rate(share)
        chosen = self.rng.choice(len(self.scenes.boxes), stage.batch_images, replace=False)
        pictures, targets = make_batch(self.scenes, chosen, stage.side, self.rng)
        self.model.train()
        loss = loss_of(self.model, pictures, targets)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        self.average.update(self.model)
        self.steps += 1
        self.images += stage.batch_images
        return float(loss.detach())

    def _report(self, share: float, losses: list[float]) -> None:
        side = _stage(share).side
        score = evaluate(self.average.model, self.validation, side)
        log.info(
            "%3.0f %% steps %d images %d side %d loss %.3f mAP %.3f mAP@0.5 %.3f, %.1f min left",
            *(share * 100, self.steps, self.images, side, float(np.mean(losses)), score.map, score.map_50),
            (1.0 - share) * self.recipe.minutes,
        )
        if side == INPUT_SIDE and score.map > self.best:
            self.best = score.map
        self._save(score, "best" if side == INPUT_SIDE and score.map >= self.best else "latest")

    def _save(self, score: TruthScore, name: str) -> None:
        lineage = {
            "script": "batchdet.demo.train_checkpoint",
            "parent": None,
            "training_seed": TRAINING_SEED,
            "training_scenes": len(self.scenes.boxes),
            "validation_seed": VALIDATION_SEED,
            "steps": self.steps,
            "images": self.images,
            "minutes": self.recipe.minutes,
        }
        write_model_folder(self.folder / name, self.average.model, CATEGORIES, score, lineage)


def publish(folder: Path, unseen: Pool) -> TruthScore:
    """Make version 1 of a registry of the best weights, measured as stored on scenes nothing was chosen by.

    Args:
        folder: of a finished training; `scenes/` is written into it.
        unseen: scenes of another seed than those of training and validation.
    """
    best = folder / "best"
    model = new_model()
    weights = load_file(best / "model.safetensors")
    model.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    )
    lineage = json.loads((best / "model.json").read_text(encoding="utf-8"))["lineage"]
    score = evaluate(model, unseen, INPUT_SIDE)
    write_model_folder(folder / "scenes" / "1", model, CATEGORIES, score, {**lineage, "metrics_seed": METRICS_SEED})
    promoted = {"version": "1", "history": [{"version": "1"}]}
    (folder / "scenes" / "promoted.json").write_text(json.dumps(promoted, indent=2) + "\n", encoding="utf-8")
    return score


def _stage(share: float) -> Stage:
    return next((stage for stage in STAGES if share < stage.until), STAGES[-1])


def _rate(share: float) -> float:
    """Share of the peak rate: a short warm-up, then a cosine to a hundredth."""
    if share < 0.04:
        return 0.05 + 0.95 * share / 0.04
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (share - 0.04) / 0.96))


def main() -> None:
    """Draw, train, and leave a registry folder `scenes/` under the folder given."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(description="Train the demo's checkpoint on drawn scenes.")
    parser.add_argument("--to", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--minutes", type=float, default=recipe.minutes, help="length of the training")
    parser.add_argument("--scenes", type=int, default=recipe.scenes, help="different scenes to train on")
    parser.add_argument("--threads", type=int, default=1, help="torch threads, and processes for drawing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(TRAINING_SEED)
    recipe = Recipe(minutes=arguments.minutes, scenes=arguments.scenes)
    scenes = draw_pool(TRAINING_SEED, recipe.scenes, arguments.threads)
    validation = draw_pool(VALIDATION_SEED, _VALIDATION_SCENES, arguments.threads)
    log.info("drew %d scenes", recipe.scenes + _VALIDATION_SCENES)
    Training(recipe, scenes, validation, arguments.to).run()
    score = publish(arguments.to, draw_pool(METRICS_SEED, _METRICS_SCENES, arguments.threads))
    log.info("on %d unseen scenes: mAP %.3f mAP@0.5 %.3f", score.num_images, score.map, score.map_50)


if __name__ == "__main__":
    main()
