"""The moving average of a student, and a mean teacher made of it. Knows no optimiser and no files.

Tarvainen and Valpola, "Mean teachers are better role models" (2017).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from batchdet.engine.families import FAMILIES
from batchdet.training.config import PseudoLabelConfig
from batchdet.training.finding import Finder
from batchdet.training.samples import Sample
from batchdet.training.targets import Banded, Target, pseudo_target

_WARM_UP = 10


def averaged(model: nn.Module, keep: float) -> AveragedModel:
    """A copy that follows the model: weights and statistics, each step keeping the share `keep` of the old.

    The first steps count more, so that a short training is not an average of its beginnings.
    """

    def follow(mine: Sequence[Any], theirs: Sequence[Any], steps: Tensor | int) -> None:
        share = min(keep, (1 + int(steps)) / (_WARM_UP + int(steps)))
        if mine[0].is_floating_point():
            torch._foreach_lerp_(list(mine), list(theirs), 1.0 - share)
        else:
            torch._foreach_copy_(list(mine), list(theirs))

    average = AveragedModel(model, multi_avg_fn=torch.no_grad()(follow), use_buffers=True)
    average.requires_grad_(False)
    return average.eval()


class MeanTeacher:
    """Labels pictures anew with a model that follows the student.

    Args:
        model: torchvision's, in eval mode; its score floor is set to the lowest score that is not rejected.
        architecture: builder name.
        categories: names in label order.
        rules: score bands by category.
    """

    def __init__(self, model: Any, architecture: str, categories: Sequence[str], rules: PseudoLabelConfig) -> None:
        self._finder = Finder(model, architecture)
        self._rules = rules
        bands = [rules.bands_of(name) for name in categories]
        self._accept = torch.tensor([band.accept for band in bands])
        self._ignore = torch.tensor([band.ignore for band in bands])
        thresholds = FAMILIES[architecture].thresholds(model)
        thresholds.score_thresh = max(thresholds.score_thresh, float(self._ignore[1:].min()) * (1.0 - 1e-6))

    def label(self, samples: Sequence[Sample], device: torch.device) -> list[Sample]:
        """The same pictures with targets of what the teacher sees in them before their colours are changed."""
        found = self._finder.find([sample.view.plain for sample in samples], device)
        relabelled = []
        for number, sample in enumerate(samples):
            own = found.select(found.image_index == number)
            target = self._target(own.boxes, own.labels, own.scores, sample.view.target)
            relabelled.append(replace(sample, view=replace(sample.view, target=target)))
        return relabelled

    def _target(self, boxes: Tensor, labels: Tensor, scores: Tensor, before: Target) -> Target:
        accepted = scores >= self._accept[labels]
        banded = Banded(accepted, (scores >= self._ignore[labels]) & ~accepted)
        return pseudo_target(boxes, labels, scores, banded, self._rules, before.seed)
