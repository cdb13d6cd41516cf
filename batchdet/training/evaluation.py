"""COCO's measures of detections against gold labels, by pycocotools. Knows no model, no files and no run.

Shape shorthand: I images, G gold objects, D detections of all images together, R = 101 levels of recall.
Lin et al., "Microsoft COCO: Common Objects in Context" (2014); the measures are those of https://cocodataset.org/#detection-eval.
"""

import contextlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from batchdet.errors import ConfigError
from batchdet.records import BoolArray, FloatArray, IntArray
from batchdet.training.gold import Gold, require_objects

Float64Array = npt.NDArray[np.float64]

AREAS = ("all", "small", "medium", "large")
"""COCO's sizes, in pycocotools' order: below 32², below 96², above."""

_AP_50, _AP_75 = 0, 5
"""Places of IoU 0.50 and 0.75 in 0.50, 0.55 … 0.95."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a detector says of the images of a gold set, as columns; scores never rise inside an image.

    Attributes:
        images: [D] position of the image in the gold set's names.
        labels: [D] position of the category in the gold set's categories.
        boxes: [D, 4] xyxy pixels, in the frame of the gold boxes.
        scores: [D].
        accepted: [D] bool, passed the policy; average precision counts every one.
    """

    images: IntArray
    labels: IntArray
    boxes: FloatArray
    scores: FloatArray
    accepted: BoolArray

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = [column.shape for column in (self.images, self.labels, self.scores, self.accepted)]
        if shapes != [(count,)] * 4 or self.boxes.shape != (count, 4):
            raise ValueError(f"expected {count} rows in every column, got {shapes} and boxes {self.boxes.shape}")

    def select(self, chosen: BoolArray) -> "Found":
        """The detections where `chosen` ([D] bool) holds."""
        return Found(
            self.images[chosen], self.labels[chosen], self.boxes[chosen], self.scores[chosen], self.accepted[chosen]
        )


@dataclass(frozen=True, slots=True)
class Score:
    """COCO's summary as fractions; None where no gold object has that size.

    Attributes:
        map: mean average precision over categories and IoU 0.50, 0.55 … 0.95.
        map_50, map_75: at one IoU.
        map_small, map_medium, map_large: objects below 32², below 96² and above, by their areas.
        ar_1, ar_10, ar_100: mean recall over categories and IoU with so many detections an image.
        ar_small, ar_medium, ar_large: with 100, by size.
        per_category, per_category_50: average precision by name; categories without a gold object are left out.
        support: gold objects by category, crowds not counted.
        num_images, num_objects: what it was measured on.
    """

    map: float
    map_50: float
    map_75: float
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_category: Mapping[str, float]
    per_category_50: Mapping[str, float]
    support: Mapping[str, int]
    num_images: int
    num_objects: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Detections of one category, best first, judged at IoU 0.50; those on crowds are left out.

    Attributes:
        scores: [D] never rising.
        is_true: [D] bool, matched to a gold object that no better one had taken.
        num_objects: gold objects to be found.
    """

    scores: Float64Array
    is_true: BoolArray
    num_objects: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What detections are worth on a gold set.

    Attributes:
        score: the summary.
        precision: [R] at IoU 0.50 and recall 0, 0.01 … 1, interpolated as COCO does, by category.
        rankings: by category; a category without gold object is left out here as there.
    """

    score: Score
    precision: Mapping[str, Float64Array]
    rankings: Mapping[str, Ranking]


def require_pycocotools() -> None:
    """Say so before any work is done for a measure that cannot be taken.

    Raises:
        ConfigError: pycocotools is not installed.
    """
    if importlib.util.find_spec("pycocotools") is None:
        raise ConfigError("measuring on gold labels needs pycocotools: pip install 'batchdet[evaluate]'")


def evaluate_detections(gold: Gold, found: Found) -> Evaluation:
    """Measure detections against every image and category of a gold set.

    Raises:
        ConfigError: the gold set holds no object, or pycocotools is not installed.
    """
    require_objects(gold)
    judged = _judge(gold, found)
    precision, recall = judged.eval["precision"], judged.eval["recall"]
    support = np.bincount(gold.labels[~gold.crowd], minlength=len(gold.categories))
    measured = {name: place for place, name in enumerate(gold.categories) if support[place]}
    return Evaluation(
        score=_summarise(precision, recall, gold, measured),
        precision={name: precision[_AP_50, :, place, 0, -1] for name, place in measured.items()},
        rankings={name: _rank(judged, place, int(support[place])) for name, place in measured.items()},
    )


def restrict(gold: Gold, found: Found, images: BoolArray, categories: Sequence[str]) -> tuple[Gold, Found]:
    """Both with fewer images ([I] bool) and categories (names), the detections of the others left out."""
    kept = np.isin(np.array(gold.categories, dtype=object), np.array(categories, dtype=object))
    chosen = found.select(images[found.images] & kept[found.labels])
    new_image, new_label = np.cumsum(images) - 1, np.cumsum(kept) - 1
    fewer = replace(chosen, images=new_image[chosen.images], labels=new_label[chosen.labels])
    return gold.restrict(images, categories), fewer


def _judge(gold: Gold, found: Found) -> Any:
    """A pycocotools COCOeval of boxes, evaluated and accumulated."""
    require_pycocotools()
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        judged = COCOeval(coco_of_gold(gold), coco_of_found(gold, found), "bbox")
        judged.evaluate()
        judged.accumulate()
    return judged


def coco_of_gold(gold: Gold) -> Any:
    """The gold labels as pycocotools takes them; ids are positions plus one, since id 0 counts as no match there."""
    columns = {"bbox": _xywh(gold.boxes), "area": gold.areas, "iscrowd": gold.crowd.astype(np.int64)}
    return _coco(gold, _annotations(gold.images, gold.labels, columns))


def coco_of_found(gold: Gold, found: Found) -> Any:
    """Detections as pycocotools takes them, under the ids of `coco_of_gold`."""
    boxes = _xywh(found.boxes.astype(np.float64))
    columns = {
        "bbox": boxes,
        "area": boxes[:, 2] * boxes[:, 3],
        "iscrowd": np.zeros(len(boxes), np.int64),
        "score": found.scores.astype(np.float64),
    }
    return _coco(gold, _annotations(found.images, found.labels, columns))


def _annotations(
    images: IntArray, labels: IntArray, columns: Mapping[str, npt.NDArray[np.generic]]
) -> list[dict[str, Any]]:
    numbered = {"id": np.arange(1, len(images) + 1), "image_id": images + 1, "category_id": labels + 1, **columns}
    rows = zip(*(column.tolist() for column in numbered.values()), strict=True)
    return [dict(zip(numbered, row, strict=True)) for row in rows]


def _coco(gold: Gold, annotations: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": number} for number in range(1, len(gold.names) + 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(gold.categories, start=1)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _xywh(corners: Float64Array) -> Float64Array:
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _summarise(precision: Float64Array, recall: Float64Array, gold: Gold, measured: Mapping[str, int]) -> Score:
    """The figures of `COCOeval.summarize`.

    Args:
        precision: [IoU, R, category, area, cap], -1 where undefined.
        recall: [IoU, category, area, cap], likewise.
        gold: what was measured on.
        measured: place of each category that has an object.
    """
    by_size = {f"map_{name}": _mean(precision[..., place, -1]) for place, name in enumerate(AREAS) if place}
    by_size |= {f"ar_{name}": _mean(recall[..., place, -1]) for place, name in enumerate(AREAS) if place}
    support = np.bincount(gold.labels[~gold.crowd], minlength=len(gold.categories))
    return Score(
        map=_defined(precision[..., 0, -1]),
        map_50=_defined(precision[_AP_50, ..., 0, -1]),
        map_75=_defined(precision[_AP_75, ..., 0, -1]),
        ar_1=_defined(recall[..., 0, 0]),
        ar_10=_defined(recall[..., 0, 1]),
        ar_100=_defined(recall[..., 0, 2]),
        per_category={name: _defined(precision[:, :, place, 0, -1]) for name, place in measured.items()},
        per_category_50={name: _defined(precision[_AP_50, :, place, 0, -1]) for name, place in measured.items()},
        support={name: int(support[place]) for name, place in measured.items()},
        num_images=len(gold.names),
        num_objects=int(support.sum()),
        **by_size,
    )


def _mean(values: Float64Array) -> float | None:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def _defined(values: Float64Array) -> float:
    return float(values[values > -1].mean())


def _rank(judged: Any, place: int, num_objects: int) -> Ranking:
    """What pycocotools matched for one category among objects of every size, over all images."""
    num_images = len(judged.params.imgIds)
    start = place * len(AREAS) * num_images
    parts = [part for part in judged.evalImgs[start : start + num_images] if part is not None]
    scores = np.concatenate([np.zeros(0), *(part["dtScores"] for part in parts)])
    matched = np.concatenate([np.zeros(0), *(part["dtMatches"][_AP_50] for part in parts)]) > 0
    counts = ~np.concatenate([np.zeros(0, np.bool_), *(part["dtIgnore"][_AP_50] for part in parts)]).astype(np.bool_)
    order = np.argsort(-scores[counts], kind="stable")
    return Ranking(scores[counts][order], matched[counts][order], num_objects)
