"""A torchvision model of any family as a Detector. Knows no architecture, no backend and no files."""

import torch
from torch import nn

from batchdet.engine.backends.choice import Choice
from batchdet.engine.detections import Detections
from batchdet.engine.detector import Batch
from batchdet.engine.family import Family
from batchdet.engine.memory import memory_border
from batchdet.records import ModelInfo


class ModelDetector:
    """A model whose networks a backend runs.

    Args:
        model: in eval mode; its thresholds, anchors and coders are used.
        choice: its networks.
        device: of the networks.
    """

    def __init__(self, info: ModelInfo, model: nn.Module, family: Family, choice: Choice, device: torch.device) -> None:
        self._info = info
        self._model = model
        self._family = family
        self._choice = choice
        self._device = device

    @property
    def info(self) -> ModelInfo:
        """Identity, categories and input."""
        return self._info

    @property
    def backend(self) -> str:
        """What runs the networks, its version and its arithmetic."""
        return self._choice.name

    @property
    def device(self) -> torch.device:
        """Where batches must lie."""
        return self._device

    @property
    def batch_images(self) -> int:
        """Images per forward pass it works best with."""
        return self._family.batch_images[self._device.type]

    def detect(self, batch: Batch) -> Detections:
        """Detections above the score floor, after the model's own NMS and caps.

        Raises:
            OutOfMemoryError: the device has no memory for this batch.
        """
        with memory_border(), torch.inference_mode():
            return self._family.detect(self._model, self._choice.networks, batch)
