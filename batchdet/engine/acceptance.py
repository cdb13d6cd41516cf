"""Which stored detections a policy accepts, on a CPU, in columns of numpy. Knows no model, no batch and no torch.

`engine.postfilter` judges with this while it labels on a CPU, and a policy alone is applied with it again later.
Shape shorthand: B images, N detections of all of them together.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from batchdet.config import PolicyConfig
from batchdet.engine import host_nms
from batchdet.errors import ConfigError
from batchdet.records import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Candidates:
    """Detections in canonical order: image, -score, label, xmin, ymin, xmax, ymax.

    Attributes:
        boxes: [N, 4] float32 xyxy.
        scores: [N] float32.
        labels: [N] positions in the categories.
        image_index: [N] in [0, B), non-decreasing.
        num_images: B.
    """

    boxes: FloatArray
    scores: FloatArray
    labels: IntArray
    image_index: IntArray
    num_images: int


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A policy bound to the categories of one model; see `bind`.

    Attributes:
        thresholds: [K] float32 by label.
    """

    policy: PolicyConfig
    thresholds: FloatArray

    def judge(self, found: Candidates) -> tuple[BoolArray, BoolArray]:
        """[N] which pass, and [B] of which images the policy's cap removed some.

        A score equal to its threshold passes. The second NMS compares only detections that passed the thresholds and
        the size rule, and drops a box whose IoU with a better accepted one is over `iou_threshold`. The cap comes last.
        """
        accepted: BoolArray = found.scores >= self.thresholds[found.labels]
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        accepted &= (sides >= np.float32(self.policy.min_box_side)).all(axis=1)
        if self.policy.iou_threshold is not None:
            self._suppress(found, accepted, self.policy.iou_threshold)
        if self.policy.max_detections is None:
            return accepted, np.zeros(found.num_images, np.bool_)
        return _cap(found, accepted, self.policy.max_detections)

    def _suppress(self, found: Candidates, accepted: BoolArray, iou_threshold: float) -> None:
        places = np.flatnonzero(accepted)
        if len(places) == 0:
            return
        segment = found.image_index[places]
        if self.policy.nms == "per_class":
            segment = segment * len(self.thresholds) + found.labels[places]
        # In raw coordinates, so nothing is rounded away; canonical order settles equal scores.
        accepted[places] = host_nms.sweep_nms(found.boxes[places], segment, iou_threshold)


def bind(policy: PolicyConfig, categories: Sequence[str], score_floor: float | None = None) -> Acceptance:
    """The policy for one model.

    Args:
        policy: thresholds, second NMS, cap and size rule.
        categories: names in label order; [0] is the background.
        score_floor: candidates at or below it were never stored; None skips that check.

    Raises:
        ConfigError: a threshold names an unknown category or lies under the floor; names the field.
    """
    return Acceptance(policy, np.array(_thresholds(policy, categories, score_floor), np.float32))


def _cap(found: Candidates, accepted: BoolArray, most: int) -> tuple[BoolArray, BoolArray]:
    """The first `most` accepted of each image, and [B] which images had more."""
    counts = np.bincount(found.image_index[accepted], minlength=found.num_images)
    before = np.cumsum(counts) - counts
    rank = np.cumsum(accepted) - before[found.image_index]
    return accepted & (rank <= most), counts > most


def _thresholds(policy: PolicyConfig, categories: Sequence[str], score_floor: float | None) -> list[float]:
    floor = 0.0 if score_floor is None else score_floor
    if policy.score_threshold < floor:
        raise ConfigError(_under_floor("policy.score_threshold", policy.score_threshold, floor))
    known = categories[1:]
    for name, value in policy.score_thresholds.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else f"the model knows {', '.join(known[:10])}"
            raise ConfigError(f"policy.score_thresholds.{name}: the model has no such category; {hint}")
        if value < floor:
            raise ConfigError(_under_floor(f"policy.score_thresholds.{name}", value, floor))
    return [policy.score_thresholds.get(name, policy.score_threshold) for name in categories]


def _under_floor(field: str, value: float, floor: float) -> str:
    return f"{field} is {value}, under model.score_floor {floor}: lower the floor or raise the threshold"
