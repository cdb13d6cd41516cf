"""What a model in training sees in pictures: detections in their frames. Knows no labels and no files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from batchdet.engine.detections import Detections
from batchdet.engine.detector import Batch
from batchdet.engine.families import FAMILIES
from batchdet.engine.parts import own_networks


class Finder:
    """A model's own detections, while its weights change.

    Args:
        model: torchvision's, in eval mode whenever it is asked.
        architecture: builder name.
    """

    def __init__(self, model: Any, architecture: str) -> None:
        self._model = model
        self._family = FAMILIES[architecture]
        self._networks = own_networks(self._family.parts(model))

    @torch.no_grad()
    def find(self, pictures: Sequence[Tensor], device: torch.device) -> Detections:
        """Detections of a batch, on the CPU.

        Args:
            pictures: uint8 [3, H, W] each.
            device: of the model.
        """
        images, _ = self._model.transform([picture.to(device).float() / 255 for picture in pictures])
        originals = tuple((int(picture.shape[-2]), int(picture.shape[-1])) for picture in pictures)
        batch = Batch(images.tensors, tuple(images.image_sizes), originals)
        return self._family.detect(self._model, self._networks, batch).cpu()

    @contextmanager
    def floor(self, score: float) -> Iterator[None]:
        """Inside, everything from this score on is found."""
        thresholds = self._family.thresholds(self._model)
        before, thresholds.score_thresh = thresholds.score_thresh, score
        try:
            yield
        finally:
            thresholds.score_thresh = before
