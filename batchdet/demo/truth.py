"""COCO mAP of detections against drawn truth, by pycocotools. Knows no model and no Parquet.

Shape shorthand: T true objects, D detections of one image. Boxes are xyxy pixels of the EXIF-applied image.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from batchdet.records import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class ImageTruth:
    """What is in one image.

    Attributes:
        boxes: [T, 4].
        labels: [T] positions in the categories; never 0.
    """

    boxes: FloatArray
    labels: IntArray


@dataclass(frozen=True, slots=True)
class ImageFindings:
    """What a detector says of one image.

    Attributes:
        boxes: [D, 4].
        scores: [D].
        labels: [D] positions in the categories; never 0.
    """

    boxes: FloatArray
    scores: FloatArray
    labels: IntArray


@dataclass(frozen=True, slots=True)
class TruthScore:
    """COCO's average precision as fractions.

    Attributes:
        map: mean over categories and IoU 0.50, 0.55 … 0.95.
        map_50: mean over categories at IoU 0.50.
        per_category: by name, over IoU 0.50 … 0.95; categories without a true object are left out.
        num_images, num_objects: what it was measured on.
    """

    map: float
    map_50: float
    per_category: Mapping[str, float]
    num_images: int
    num_objects: int


def score_against_truth(
    truth: Mapping[str, ImageTruth], findings: Mapping[str, ImageFindings], categories: Sequence[str]
) -> TruthScore:
    """Average precision of `findings` over every image of `truth`; an image without findings found nothing.

    Args:
        truth: by image name or URI.
        findings: by the same names; candidates of every score belong here, not only the accepted.
        categories: names in label order, "__background__" first.

    Raises:
        ValueError: findings name an image that truth does not know, or truth holds no object.
    """
    strangers = sorted(findings.keys() - truth.keys())
    if strangers:
        raise ValueError(f"no truth for {len(strangers)} images with findings, e.g. {strangers[0]}")
    numbers = {name: number for number, name in enumerate(sorted(truth), start=1)}
    gold = _gold(truth, numbers, categories)
    if not gold["annotations"]:
        raise ValueError("the truth holds no object: average precision is undefined")
    rows = [row for name, found in findings.items() for row in _rows(numbers[name], found)]
    precision = _precision(gold, rows)
    by_category = {
        name: _mean(precision[:, :, place])
        for place, name in enumerate(categories[1:])
        if (precision[:, :, place] > -1).any()
    }
    return TruthScore(
        map=_mean(precision),
        map_50=_mean(precision[0]),
        per_category=by_category,
        num_images=len(truth),
        num_objects=len(gold["annotations"]),
    )


def _gold(
    truth: Mapping[str, ImageTruth], numbers: Mapping[str, int], categories: Sequence[str]
) -> dict[str, list[dict[str, object]]]:
    """The truth in COCO's own form."""
    annotations: list[dict[str, object]] = []
    for name, number in numbers.items():
        for box, label in zip(truth[name].boxes.tolist(), truth[name].labels.tolist(), strict=True):
            xywh = _xywh(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": xywh,
                    "area": xywh[2] * xywh[3],
                    "iscrowd": 0,
                }
            )
    return {
        "images": [{"id": number} for number in numbers.values()],
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(categories) if label > 0],
    }


def _rows(number: int, found: ImageFindings) -> list[dict[str, object]]:
    triples = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return [
        {"image_id": number, "category_id": label, "bbox": _xywh(box), "score": score} for box, score, label in triples
    ]


def _xywh(box: Sequence[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _precision(gold: dict[str, list[dict[str, object]]], rows: list[dict[str, object]]) -> FloatArray:
    """Precision [IoU, recall, category] over objects of every size, at most 100 detections an image; -1: undefined."""
    shape = (10, 101, len(gold["categories"]))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **gold}
        coco.createIndex()
        if not rows:
            return np.zeros(shape, np.float32)
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision: FloatArray = evaluation.eval["precision"][:, :, :, 0, -1].astype(np.float32)
    return precision


def _mean(precision: FloatArray) -> float:
    return float(precision[precision > -1].mean())
