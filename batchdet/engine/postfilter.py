"""Which detections a policy accepts. Knows no model, and drops no candidate.

Shape shorthand: B images of a batch, N detections of all of them together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchdet.config import PolicyConfig
from batchdet.engine.acceptance import Candidates, bind
from batchdet.engine.detections import Detections
from batchdet.engine.steps import steps_for


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says of a batch.

    Attributes:
        detections: the same detections in canonical order: image, -score, label, xmin, ymin, xmax, ymax.
        accepted: [N] bool, passed the policy.
        capped: [B] bool, a cap of the model or of the policy removed detections.
    """

    detections: Detections
    accepted: Tensor
    capped: Tensor


class PostFilter:
    """A policy bound to the categories of one model."""

    def __init__(self, policy: PolicyConfig, categories: Sequence[str], score_floor: float | None = None) -> None:
        """Bind the policy.

        Args:
            policy: thresholds, second NMS, cap and size rule.
            categories: names in label order; [0] is the background.
            score_floor: candidates at or below it were never stored; None skips that check.

        Raises:
            ConfigError: a threshold names an unknown category or lies under the floor; names the field.
        """
        self._policy = policy
        self._acceptance = bind(policy, categories, score_floor)
        self._thresholds = torch.from_numpy(self._acceptance.thresholds)

    def __call__(self, detections: Detections) -> Verdict:
        """Judge a batch, on the device it lies on; see `Acceptance.judge` for the rules."""
        detections = detections.select(canonical_order(detections))
        judge = self.on_host if detections.scores.device.type == "cpu" else self.on_device
        return judge(detections)

    def on_host(self, detections: Detections) -> Verdict:
        """Judge a batch on a CPU, in canonical order."""
        found = Candidates(
            detections.boxes.numpy(),
            detections.scores.numpy(),
            detections.labels.numpy(),
            detections.image_index.numpy(),
            num_images=len(detections.capped),
        )
        accepted, over = self._acceptance.judge(found)
        return Verdict(detections, torch.from_numpy(accepted), detections.capped | torch.from_numpy(over))

    def on_device(self, detections: Detections) -> Verdict:
        """Judge a batch on any device, in canonical order: the same verdict."""
        thresholds = self._thresholds.to(detections.scores.device)
        accepted = detections.scores >= thresholds[detections.labels]
        sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
        accepted &= (sides >= self._policy.min_box_side).all(dim=1)
        if self._policy.iou_threshold is not None:
            accepted = self._suppress(detections, accepted, self._policy.iou_threshold)
        capped = detections.capped
        if self._policy.max_detections is not None:
            accepted, over = _cap(detections, accepted, self._policy.max_detections)
            capped = capped | over
        return Verdict(detections, accepted, capped)

    def _suppress(self, detections: Detections, accepted: Tensor, iou_threshold: float) -> Tensor:
        index = accepted.nonzero().flatten()
        if len(index) == 0:
            return accepted
        rivals = detections.select(index)
        segment = rivals.image_index
        if self._policy.nms == "per_class":
            segment = segment * len(self._thresholds) + rivals.labels
        # In raw coordinates, so nothing is rounded away; canonical order settles equal scores.
        keep = steps_for(segment.device).sweep_nms(rivals.boxes, segment, iou_threshold)
        return accepted.index_put((index,), keep)


def canonical_order(detections: Detections) -> Tensor:
    """[N] int64 positions that sort by image, then -score, label, xmin, ymin, xmax, ymax."""
    if _is_strictly_ordered(detections):
        return torch.arange(len(detections), device=detections.scores.device)
    keys = [*detections.boxes.flip(1).unbind(1), detections.labels, -detections.scores, detections.image_index]
    order = torch.arange(len(detections), device=detections.scores.device)
    for key in keys:
        order = order[torch.argsort(key[order], stable=True)]
    return order


def _is_strictly_ordered(detections: Detections) -> bool:
    """Whether images ascend and scores fall without a tie inside each: what a detector nearly always gives."""
    image, score = detections.image_index, detections.scores
    falls = (image[1:] == image[:-1]) & (score[1:] < score[:-1])
    return bool((falls | (image[1:] > image[:-1])).all())


def _cap(detections: Detections, accepted: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The first `most` accepted of each image, and [B] which images had more."""
    index = detections.image_index
    counts = torch.zeros(len(detections.capped), dtype=torch.int64, device=index.device)
    counts.index_add_(0, index, accepted.to(torch.int64))
    before = torch.cumsum(counts, 0) - counts
    rank = torch.cumsum(accepted.to(torch.int64), 0) - before[index]
    return accepted & (rank <= most), counts > most
