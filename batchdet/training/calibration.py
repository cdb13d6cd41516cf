"""Score thresholds by category for a wanted precision, from detections judged on gold. Knows no model and no file.

Precision here is that of the very gold the threshold was chosen on; the interval is Wilson's score interval at 95 %
(E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from batchdet.training.evaluation import Ranking

CONFIDENCE = 0.95
NOTHING_ACCEPTED = 1.0
"""The threshold of a category whose detections never are as precise as wanted."""

_DECIMALS = range(2, 7)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What thresholds are chosen for.

    Attributes:
        precision: share of accepted detections that are to be right at IoU 0.50, a fraction.
        default: threshold of a category with too few gold objects.
        min_objects: gold objects a category needs.
        score_floor: no threshold is under it.
    """

    precision: float
    default: float
    min_objects: int
    score_floor: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """The threshold of one category and what it gives on the gold set.

    Attributes:
        outcome: `too_few_objects` takes the default, `out_of_reach` accepts nothing.
        precision, precision_low, precision_high: of what the threshold accepts, with its interval; None for nothing.
        recall: share of the gold objects that is accepted.
        num_accepted, num_objects: detections accepted, gold objects to be found.
    """

    score_threshold: float
    outcome: Literal["calibrated", "too_few_objects", "out_of_reach"]
    precision: float | None
    precision_low: float | None
    precision_high: float | None
    recall: float
    num_accepted: int
    num_objects: int


def calibrate_thresholds(rankings: Mapping[str, Ranking], wanted: Wanted) -> dict[str, Threshold]:
    """The lowest threshold of each category at which the accepted detections are as precise as wanted.

    Args:
        rankings: judged detections over the score floor, by category.
        wanted: the precision, and what holds where it cannot be judged.
    """
    return {name: _calibrate(ranking, wanted) for name, ranking in rankings.items()}


def wilson_interval(num_true: int, num_all: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = num_true / num_all, z * z / num_all
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / num_all + spread / (4 * num_all)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def _calibrate(ranking: Ranking, wanted: Wanted) -> Threshold:
    if ranking.num_objects < wanted.min_objects:
        return _measure(ranking, wanted.default, "too_few_objects")
    scores = ranking.scores
    precision = np.cumsum(ranking.is_true) / np.arange(1, len(scores) + 1)
    # Equal scores are accepted together: only the last of them can be where acceptance ends.
    ends = np.append(scores[1:] < scores[:-1], True)[: len(scores)]
    enough = np.flatnonzero(ends & (precision >= wanted.precision))
    if not len(enough):
        return _measure(ranking, NOTHING_ACCEPTED, "out_of_reach")
    last = int(enough[-1])
    below = float(scores[last + 1]) if last + 1 < len(scores) else 0.0
    return _measure(ranking, _short(float(scores[last]), max(below, wanted.score_floor)), "calibrated")


def _short(score: float, below: float) -> float:
    """A number of few decimals in (below, score]: it accepts what the score itself would."""
    rounded = (math.floor(score * 10**decimals) / 10**decimals for decimals in _DECIMALS)
    return next((value for value in rounded if value > below), score)


def _measure(
    ranking: Ranking, threshold: float, outcome: Literal["calibrated", "too_few_objects", "out_of_reach"]
) -> Threshold:
    accepted = ranking.scores >= np.float32(threshold)
    num_accepted, num_true = int(accepted.sum()), int((accepted & ranking.is_true).sum())
    low, high = wilson_interval(num_true, num_accepted) if num_accepted else (None, None)
    return Threshold(
        score_threshold=threshold,
        outcome=outcome,
        precision=num_true / num_accepted if num_accepted else None,
        precision_low=low,
        precision_high=high,
        recall=num_true / ranking.num_objects,
        num_accepted=num_accepted,
        num_objects=ranking.num_objects,
    )
