"""What checkpoint loading and detection ask of a family of architectures. Knows none of them."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from batchdet.engine.detections import Detections
from batchdet.engine.detector import Batch
from batchdet.engine.parts import Drift, Networks, Part


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

    @property
    def batch_images(self) -> Mapping[str, int]:
        """Images a forward pass takes best at a time, by device type: `cpu`, `cuda`."""

    def parts(self, model: nn.Module) -> Mapping[str, Part]:
        """The model's networks by name: all of it that a backend can run."""

    def drift(self, model: nn.Module, networks: Networks, stock: Networks) -> Drift:
        """How far networks lie from others on made pictures: the same parts, run another way."""

    def detect(self, model: nn.Module, networks: Networks, batch: Batch) -> Detections:
        """Detections of a batch, boxes in the original frames.

        Args:
            model: holds thresholds, anchors and coders.
            networks: its parts, as a backend runs them.
            batch: on the networks' device.
        """
