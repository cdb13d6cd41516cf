"""A small world to retrain in: drawn scenes as files, gold and held-out labels, committed labels. Knows no training."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from batchdet.config import load_job
from batchdet.demo.scenes import Scene, SceneStyle, draw_scene
from batchdet.demo.shapes import SHAPES
from batchdet.demo.shipped import shipped_model
from batchdet.labelling import Hardware, InlineRunner
from batchdet.run import label_bucket
from batchdet.training.job import RetrainConfig, load_retrain
from tests.contract.conftest import Recorder

STYLE = SceneStyle(sizes=((160, 120),), empty_share=0.0, formats=(("JPEG", 1.0),), exif_share=0.0)
STILL = {"flip": 0.0, "zoom": [1.0, 1.0], "iou_crop": 0.0, "distort": 0.0}
NUM_GOLD, NUM_HELD_OUT, NUM_LABELLED = 4, 6, 10
Put = Callable[[str, bytes], None]


def coco(scenes: Sequence[Scene]) -> bytes:
    """The truth of scenes as COCO's json."""
    annotations = [
        {"image_id": place, "category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for place, scene in enumerate(scenes)
        for (x0, y0, x1, y1), label in zip(scene.boxes.tolist(), scene.labels, strict=True)
    ]
    return json.dumps(
        {
            "images": [{"id": place, "file_name": scene.name} for place, scene in enumerate(scenes)],
            "categories": [{"id": label, "name": name} for label, name in enumerate(SHAPES, start=1)],
            "annotations": annotations,
        }
    ).encode()


def put_world(put: Put) -> None:
    """Pictures in photos/, gold/ and held-out/, the truth of the latter two beside them."""
    numbers = iter(range(100))
    for folder, count in (("photos", NUM_LABELLED), ("gold", NUM_GOLD), ("held-out", NUM_HELD_OUT)):
        scenes = [draw_scene(77, next(numbers), STYLE) for _ in range(count)]
        for scene in scenes:
            put(f"{folder}/{scene.name}", scene.data)
        if folder != "photos":
            put(f"{folder}.json", coco(scenes))


def put_files(root: Path) -> Put:
    def put(name: str, data: bytes) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)

    return put


def label_world(root: str) -> None:
    """The demo's model labels the photos."""
    fields = {"source": f"{root}/photos", "output": f"{root}/labels", "model.reference": str(shipped_model())}
    label_bucket(load_job(None, dict(fields)), InlineRunner(Hardware("cpu", 1)), Recorder())


def settings(root: str, training: str, **changes: object) -> dict[str, object]:
    """Six steps of four pictures, without augmentation, a checkpoint every other step; `a__b=1` changes a.b."""
    fields: dict[str, object] = {
        "source.outputs": [f"{root}/labels"],
        "gold": {"annotations": f"{root}/gold.json", "images": f"{root}/gold", "share": 0.5},
        "held_out": {"annotations": f"{root}/held-out.json", "images": f"{root}/held-out"},
        "start.reference": str(shipped_model()),
        "output": f"{root}/{training}",
        "registry": f"{root}/registry/{training}",
        "length": {"steps": 6, "batch_images": 4, "seed": 7},
        "schedule.warmup_steps": 2,
        "augmentation": {"weak": STILL, "strong": STILL},
        "optimiser": {"learning_rate": 0.001, "scaling": "none"},
        "pseudo_labels.bands.accept": 0.5,
        "guard.action": "off",
        "gate": {"tolerance": 1.0, "category_tolerance": 1.0},
        "checkpoints.every_steps": 2,
        "workers.cpus": 1,
    }
    return fields | {name.replace("__", "."): value for name, value in changes.items()}


def job(root: str, training: str = "training", **changes: object) -> RetrainConfig:
    return load_retrain(None, settings(root, training, **changes))
