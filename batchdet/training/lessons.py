"""A detector as a network from pictures and targets to losses. Knows each family's losses by name only."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from batchdet.engine.families import FAMILIES
from batchdet.engine.rcnn import RCNNFamily
from batchdet.engine.ssd import SSDFamily
from batchdet.training.loss_config import LossConfig
from batchdet.training.rcnn_loss import rcnn_terms
from batchdet.training.ssd_loss import ssd_terms
from batchdet.training.targets import Target
from batchdet.training.terms import LossTerm

TermsOf = Callable[[nn.Module, Sequence[Tensor], Sequence[Target], LossConfig], dict[str, LossTerm]]

LOSSES: Mapping[type, tuple[TermsOf, tuple[str, ...]]] = MappingProxyType(
    {
        SSDFamily: (ssd_terms, ("bbox_regression", "classification")),
        RCNNFamily: (rcnn_terms, ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")),
    }
)
"""Family to its losses and their names in order; a new family is one line here."""


class Lesson(nn.Module):
    """The student and its losses as one module, so that data-parallel training sees one forward pass."""

    def __init__(self, model: Any, architecture: str, rules: LossConfig) -> None:
        super().__init__()
        self.model = model
        self._terms_of, self.names = LOSSES[type(FAMILIES[architecture])]
        self._rules = rules

    def train(self, mode: bool = True) -> "Lesson":
        """Training mode for all but torchvision's transform, which would draw a size: sizes are those of labelling."""
        super().train(mode)
        self.model.transform.eval()
        return self

    def forward(self, pictures: Sequence[Tensor], targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
        """Sums and counts of the losses, [L] each in the order of `names`; without pictures all are 0.

        Args:
            pictures: uint8 [3, H, W] each, or float32 in [0, 1], on the model's device.
            targets: one per picture, on the same device.
        """
        if not pictures:
            # A worker all of whose images have vanished still takes part in the sum of gradients.
            nothing = (
                torch.stack([weight.sum() for weight in self.model.parameters() if weight.requires_grad]).sum() * 0
            )
            return nothing.expand(len(self.names)), torch.zeros(len(self.names), device=nothing.device)
        terms = self._terms_of(self.model, pictures, targets, self._rules)
        ordered = [terms[name] for name in self.names]
        return torch.stack([term.total for term in ordered]), torch.stack([term.count for term in ordered])
