"""A torchvision model of any family as a Detector. Knows no architecture and no files."""

import torch
from torch import nn

from batchdet.engine.detections import Detections
from batchdet.engine.detector import Batch
from batchdet.engine.family import Family
from batchdet.engine.memory import memory_border
from batchdet.records import ModelInfo


class TorchDetector:
    """Runs a model eagerly on one device.

    Args:
        model: in eval mode on its device.
        batch_images: images per forward pass it works best with.
        autocast: arithmetic of backbone and heads when not float32; default boxes, anchors, boxes and scores
            are float32 anyway.
    """

    def __init__(
        self, info: ModelInfo, model: nn.Module, family: Family, batch_images: int, autocast: torch.dtype | None
    ) -> None:
        self._info = info
        self._model = model
        self._family = family
        self._batch_images = batch_images
        self._autocast = autocast
        self._device = next(model.parameters()).device

    @property
    def info(self) -> ModelInfo:
        """Identity, categories and input."""
        return self._info

    @property
    def device(self) -> torch.device:
        """Where batches must lie."""
        return self._device

    @property
    def batch_images(self) -> int:
        """Images per forward pass it works best with."""
        return self._batch_images

    def detect(self, batch: Batch) -> Detections:
        """Detections above the score floor, after the model's own NMS and caps.

        Raises:
            OutOfMemoryError: the device has no memory for this batch.
        """
        autocast = torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None)
        with memory_border(), torch.inference_mode(), autocast:
            return self._family.detect(self._model, batch)
