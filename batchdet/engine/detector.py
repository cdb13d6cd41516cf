"""What the pipeline asks of any detector, whatever its family. Knows no architecture."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from batchdet.engine.detections import Detections
from batchdet.records import ModelInfo

BACKGROUND = "__background__"
"""Name of label 0."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one padded shape, ready for a forward pass.

    Attributes:
        pixels: [B, 3, H, W] float32 on the detector's device, resized, normalised, zero-padded right and bottom.
        sizes: B × (height, width) inside the padding.
        original_sizes: B × (height, width) of the EXIF-applied image, the frame of the boxes returned.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    original_sizes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        count = self.pixels.shape[0]
        if len(self.sizes) != count or len(self.original_sizes) != count:
            raise ValueError(
                f"expected {count} sizes and original_sizes, got {len(self.sizes)} and {len(self.original_sizes)}"
            )


class Detector(Protocol):
    """A loaded model that turns a batch into detections."""

    @property
    def info(self) -> ModelInfo:
        """Identity, categories and input."""

    @property
    def backend(self) -> str:
        """What computes the detections, its version and its arithmetic, e.g. `openvino-2026.4.1/fp32`."""

    @property
    def device(self) -> torch.device:
        """Where batches must lie."""

    @property
    def batch_images(self) -> int:
        """Images per forward pass it works best with; the pipeline never sends more."""

    def detect(self, batch: Batch) -> Detections:
        """Detections above the model's score floor, after the model's own NMS and caps.

        Raises:
            OutOfMemoryError: the device has no memory for this batch. (Moving the batch there and the detections back
                is the caller's, within `memory_border`.)
        """
