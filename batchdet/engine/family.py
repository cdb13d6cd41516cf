"""What checkpoint loading and detection ask of a family of architectures. Knows none of them."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from batchdet.engine.detections import Detections
from batchdet.engine.detector import Batch


class Thresholds(Protocol):
    """The part of a torchvision model that holds its own limits."""

    score_thresh: float
    nms_thresh: float
    detections_per_img: int


class Family(Protocol):
    """One family of torchvision detectors: how to build, read and run its members."""

    def build(
        self, architecture: str, num_classes: int, weights: Mapping[str, Tensor], torchvision_name: str | None
    ) -> nn.Module:
        """The builder's model with the variant of layers the weights have; its values are not loaded yet.

        Args:
            architecture: builder name.
            num_classes: background included.
            weights: named tensors, whose names and shapes tell the variant.
            torchvision_name: of the weights, e.g. `COCO_V1`; None for anyone else's.
        """

    def count_classes(self, weights: Mapping[str, Tensor]) -> int:
        """Classes the heads in the weights have, background included.

        Raises:
            KeyError: the weights lack the heads.
        """

    def thresholds(self, model: nn.Module) -> Thresholds:
        """The part of the model that holds its thresholds."""

    def settle(self, model: nn.Module, device: torch.device) -> tuple[nn.Module, int]:
        """The loaded model on the device, as it runs best there, and how many images it then takes best at a time.

        Whatever is rearranged, scores stay within 1e-5 and boxes within 1e-3 pixels.
        """

    def detect(self, model: nn.Module, batch: Batch) -> Detections:
        """Detections of a batch, boxes in the original frames."""
