"""Retraining in a world the demo's model was not made for: label it, learn from the labels, measure. Knows no Ray.

DIR/retrain/{photos,gold,held-out}/    drawn scenes of the shifted world; of the latter two the truth as COCO's json too
DIR/retrain/labels/                    what the demo's model says of the photos
DIR/retrain/{student,gold-only}/       the trainings: with pseudo-labels, and the control on the few gold alone
DIR/retrain/registry/                  the models
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchdet.config import load_job
from batchdet.demo.scenes import Scene, SceneStyle, draw_scene
from batchdet.demo.shapes import SHAPES
from batchdet.demo.shipped import shipped_model
from batchdet.progress import Progress
from batchdet.records import RunRow
from batchdet.retraining import Place, Retrained, retrain
from batchdet.run import Runner, label_bucket
from batchdet.storage.filesystem import Store, open_store
from batchdet.training.job import RetrainConfig, load_retrain

SEED = 2027
SHIFTED = SceneStyle(
    sizes=((320, 240), (400, 300), (300, 400)),
    object_size=(0.16, 0.4),
    saturation=(0.0, 0.3),
    brightness=(0.1, 0.65),
    blur=(0.004, 0.009),
    noise=(6.0, 16.0),
)
"""Greyer, darker, blurred and noisy, with smaller objects in smaller pictures."""

NUM_PHOTOS, NUM_GOLD, NUM_HELD_OUT = 240, 8, 160
STEPS = 100
RECIPE: Mapping[str, Any] = {
    "pseudo_labels.bands": {"accept": 0.5, "ignore": 0.15},
    "guard.action": "warn",
    "length": {"steps": STEPS, "batch_images": 16, "seed": 1},
    "optimiser": {"name": "adamw", "learning_rate": 0.0005, "weight_decay": 0.03, "scaling": "none"},
    "schedule.warmup_steps": 10,
    "network.average": 0.98,
    "checkpoints.every_steps": 20,
}


@dataclass(frozen=True, slots=True)
class ShiftedResult:
    """What the retraining came to.

    Attributes:
        run: the labelling of the photos.
        student: learned from gold and pseudo-labels.
        control: learned from gold alone, by the same recipe.
    """

    folder: Path
    run: RunRow
    student: Retrained
    control: Retrained


def run_shifted(folder: Path, place: Place, runner: Runner, progress: Progress) -> ShiftedResult:
    """Draw the shifted world, label it with the demo's model, train a student and a control, and measure all three.

    Args:
        folder: what an earlier start has done in it is not done again.
        place: where to train.
        runner: where to label.
        progress: told what happens.

    Raises:
        UserError, RunError: as `retrain`.
    """
    root = open_store(str(folder / "retrain"), {})
    progress.log(
        f"drawing {NUM_PHOTOS + NUM_GOLD + NUM_HELD_OUT} scenes of another palette, blurred, with smaller objects"
    )
    _draw_world(root)
    fields = {"source": root.child_uri("photos"), "output": root.child_uri("labels")}
    run = label_bucket(load_job(None, {**fields, "model.reference": str(shipped_model())}), runner, progress)
    progress.log("training a student on gold and pseudo-labels")
    student = retrain(training(root, "student"), place, runner, progress)
    progress.log("training a control on the gold alone")
    control = retrain(training(root, "gold-only", source=None), place, runner, progress)
    return ShiftedResult(folder, run, student, control)


def training(root: Store, name: str, **changes: Any) -> RetrainConfig:
    """The job of one of the trainings."""
    fields: dict[str, Any] = {
        "source": {"outputs": [root.child_uri("labels")]},
        "gold": {"annotations": root.child_uri("gold.json"), "images": root.child_uri("gold")},
        "held_out": {"annotations": root.child_uri("held-out.json"), "images": root.child_uri("held-out")},
        "start.reference": str(shipped_model()),
        "output": root.child_uri(name),
        "registry": root.child_uri(f"registry/{name}"),
    }
    return load_retrain(None, fields | dict(RECIPE) | changes)


def _draw_world(root: Store) -> None:
    numbers = iter(range(NUM_PHOTOS + NUM_GOLD + NUM_HELD_OUT))
    for folder, count in (("held-out", NUM_HELD_OUT), ("gold", NUM_GOLD), ("photos", NUM_PHOTOS)):
        scenes = [draw_scene(SEED, next(numbers), SHIFTED) for _ in range(count)]
        for scene in scenes:
            root.write_bytes(f"{folder}/{scene.name}", scene.data)
        if folder != "photos":
            root.write_bytes(f"{folder}.json", json.dumps(as_coco(scenes)).encode())


def as_coco(scenes: Sequence[Scene]) -> dict[str, Any]:
    """The truth of scenes in COCO's form."""
    return {
        "images": [{"id": place, "file_name": scene.name} for place, scene in enumerate(scenes)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(SHAPES, start=1)],
        "annotations": [entry for place, scene in enumerate(scenes) for entry in _annotations(place, scene)],
    }


def _annotations(place: int, scene: Scene) -> Iterator[dict[str, Any]]:
    for (left, top, right, bottom), label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
        yield {"image_id": place, "category_id": label, "bbox": [left, top, right - left, bottom - top]}
