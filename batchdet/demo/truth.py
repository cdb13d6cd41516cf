"""COCO mAP of detections against drawn truth. Knows no model and no Parquet.

Shape shorthand: T true objects, D detections of one image. Boxes are xyxy pixels of the EXIF-applied image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchdet.records import FloatArray, IntArray
from batchdet.training.evaluation import Found, evaluate_detections
from batchdet.training.gold import Gold


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


_NO_FINDINGS = ImageFindings(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


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
    names = sorted(truth)
    gold = _gold(truth, names, categories)
    if not len(gold.boxes):
        raise ValueError("the truth holds no object: average precision is undefined")
    score = evaluate_detections(gold, _found(findings, names)).score
    return TruthScore(
        map=score.map,
        map_50=score.map_50,
        per_category=score.per_category,
        num_images=score.num_images,
        num_objects=score.num_objects,
    )


def _gold(truth: Mapping[str, ImageTruth], names: Sequence[str], categories: Sequence[str]) -> Gold:
    """The truth as gold labels, which count categories without the background."""
    boxes = _join([truth[name].boxes for name in names], np.float64, (0, 4))
    return Gold(
        uri="the drawn truth",
        digest="",
        names=tuple(names),
        sizes=np.zeros((len(names), 2), np.int64),
        categories=tuple(categories[1:]),
        images=_owners([truth[name].labels for name in names]),
        labels=_join([truth[name].labels for name in names], np.int64, (0,)) - 1,
        boxes=boxes,
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        crowd=np.zeros(len(boxes), np.bool_),
    )


def _found(findings: Mapping[str, ImageFindings], names: Sequence[str]) -> Found:
    found = [findings.get(name, _NO_FINDINGS) for name in names]
    scores = _join([image.scores for image in found], np.float32, (0,))
    return Found(
        images=_owners([image.labels for image in found]),
        labels=_join([image.labels for image in found], np.int64, (0,)) - 1,
        boxes=_join([image.boxes for image in found], np.float32, (0, 4)),
        scores=scores,
        accepted=np.ones(len(scores), np.bool_),
    )


def _owners(labels: Sequence[IntArray]) -> IntArray:
    """The place of the image of each object."""
    return np.repeat(np.arange(len(labels)), [len(image) for image in labels])


def _join(parts: Sequence[npt.NDArray[Any]], dtype: type, empty: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(empty, dtype), *parts]).astype(dtype, copy=False)
