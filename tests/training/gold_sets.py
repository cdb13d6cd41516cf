"""Gold sets, detections and scenes for tests of what a model is worth, and pycocotools called on plain json."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from batchdet.demo.scenes import draw_scenes
from batchdet.demo.shapes import SHAPES
from batchdet.training.evaluation import Found
from batchdet.training.gold import Gold, parse_gold


def coco_tree(
    objects: Mapping[str, Sequence[tuple[str, Sequence[float]]]],
    categories: Sequence[str],
    crowd: Sequence[tuple[str, int]] = (),
) -> dict[str, Any]:
    """COCO's json of images by name, each with (category, xywh) objects; `crowd` names some by image and place."""
    annotations = []
    for number, (name, boxes) in enumerate(objects.items(), start=1):
        for place, (category, box) in enumerate(boxes):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": categories.index(category) + 1,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": int((name, place) in crowd),
                }
            )
    return {
        "images": [
            {"id": number, "file_name": name, "width": 640, "height": 480}
            for number, name in enumerate(objects, start=1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories, start=1)],
        "annotations": annotations,
    }


def gold_of(tree: Mapping[str, Any]) -> Gold:
    return parse_gold(json.dumps(tree).encode(), "gold.json")


def found_of(gold: Gold, rows: Sequence[tuple[str, str, Sequence[float], float]], accepted_from: float = 0.5) -> Found:
    """Detections from (image, category, xyxy, score), in canonical order of their scores."""
    ordered = sorted(rows, key=lambda row: (row[0], -row[3]))
    scores = np.array([score for *_, score in ordered], np.float32)
    return Found(
        images=np.array([gold.names.index(name) for name, *_ in ordered], np.int64),
        labels=np.array([gold.categories.index(category) for _, category, *_ in ordered], np.int64),
        boxes=np.array([box for *_, box, _ in ordered], np.float32).reshape(-1, 4),
        scores=scores,
        accepted=scores >= accepted_from,
    )


def oracle(tree: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], image_ids: Sequence[int] | None = None) -> Any:
    """pycocotools' own evaluation of its own json: nothing of ours.

    Args:
        tree: COCO's json.
        rows: detections as `loadRes` takes them, with the ids of the tree.
        image_ids: images to count; None for all.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps({"info": {}, **tree}))
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(row) for row in rows]), "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


STATS = (
    "map",
    "map_50",
    "map_75",
    "map_small",
    "map_medium",
    "map_large",
    "ar_1",
    "ar_10",
    "ar_100",
    "ar_small",
    "ar_medium",
    "ar_large",
)
"""Names of `COCOeval.stats` in our score."""


def assert_is_oracle(score: Mapping[str, Any], judged: Any) -> None:
    """Every figure equals pycocotools' to 1e-6; what is undefined there is None here."""
    for name, expected in zip(STATS, judged.stats, strict=True):
        if expected == -1:
            assert score[name] is None, name
        else:
            assert abs(score[name] - expected) < 1e-6, (name, score[name], expected)
    precision = judged.eval["precision"]
    names = {category["id"]: category["name"] for category in judged.cocoGt.dataset["categories"]}
    for place, number in enumerate(judged.params.catIds):
        values = precision[:, :, place, 0, -1]
        if (values > -1).any():
            assert abs(score["per_category"][names[number]] - values[values > -1].mean()) < 1e-6
            assert abs(score["per_category_50"][names[number]] - values[0][values[0] > -1].mean()) < 1e-6
        else:
            assert names[number] not in score["per_category"]


def write_scenes(folder: Path, seed: int, count: int) -> dict[str, Any]:
    """Draw scenes into `folder/images`, their truth into `folder/gold.json`; returns the json's tree."""
    (folder / "images").mkdir(parents=True)
    objects = {}
    for scene in draw_scenes(seed, count):
        (folder / "images" / scene.name).write_bytes(scene.data)
        boxes = np.concatenate([scene.boxes[:, :2], scene.boxes[:, 2:] - scene.boxes[:, :2]], axis=1)
        objects[scene.name] = [
            (SHAPES[label - 1], box) for label, box in zip(scene.labels.tolist(), boxes.tolist(), strict=True)
        ]
    tree = coco_tree(objects, SHAPES)
    for image in tree["images"]:
        del image["width"], image["height"]
    (folder / "gold.json").write_text(json.dumps(tree))
    return tree
