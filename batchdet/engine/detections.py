"""Detections of a batch as columns of tensors. Knows no model and no policy.

Shape shorthand: B images of a batch, N detections of all of them together.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes, scores and labels of a whole batch, indexed together.

    Attributes:
        boxes: [N, 4] float32, xyxy pixels of each image's original (EXIF-applied) frame, clipped to it.
        scores: [N] float32.
        labels: [N] int64, positions in the detector's categories, never 0.
        image_index: [N] int64 in [0, B), non-decreasing; inside an image scores do not increase.
        capped: [B] bool, a cap of the model removed detections that had passed its thresholds and NMS.
        finite: [B] bool, the network gave finite numbers only; an image without it has no detections worth a row.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    image_index: Tensor
    capped: Tensor
    finite: Tensor

    def __post_init__(self) -> None:
        count = self.scores.shape[0] if self.scores.dim() == 1 else -1
        expected = {"boxes": (count, 4), "scores": (count,), "labels": (count,), "image_index": (count,)}
        for name, shape in expected.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(f"{name}: expected shape {list(shape)}, got {list(got)}")
        for name, column in (("capped", self.capped), ("finite", self.finite)):
            if column.shape != self.capped.shape or column.dim() != 1 or column.dtype != torch.bool:
                raise ValueError(f"{name}: expected bool [B], got {column.dtype} {list(column.shape)}")

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    def select(self, index: Tensor) -> "Detections":
        """The detections at a bool [N] mask or int64 positions; `capped` and `finite` stay."""
        # index_select copies several times as fast as indexing, and a mask is turned into positions once.
        places = index.nonzero().squeeze(1) if index.dtype == torch.bool else index
        columns = (self.boxes, self.scores, self.labels, self.image_index)
        boxes, scores, labels, image_index = (column.index_select(0, places) for column in columns)
        return replace(self, boxes=boxes, scores=scores, labels=labels, image_index=image_index)

    def cpu(self) -> "Detections":
        """The same on the host, from a GPU by one copy for all columns."""
        if self.scores.device.type == "cpu":
            return self
        return unpack(pack(self).cpu(), len(self), len(self.capped))


def pack(detections: Detections) -> Tensor:
    """Every column as one [36 * N + 2 * B] uint8 tensor on the same device, the widest numbers first."""
    columns = (
        detections.labels,
        detections.image_index,
        detections.boxes,
        detections.scores,
        detections.capped,
        detections.finite,
    )
    return torch.cat([column.contiguous().view(torch.uint8).flatten() for column in columns])


def unpack(packed: Tensor, num_detections: int, num_images: int) -> Detections:
    """The detections that `pack` packed, as views of it."""
    many, few = num_detections, num_images
    sizes = [8 * many, 8 * many, 16 * many, 4 * many, few, few]
    labels, image_index, boxes, scores, capped, finite = torch.split_with_sizes(packed, sizes)
    return Detections(
        boxes=boxes.view(torch.float32).reshape(many, 4),
        scores=scores.view(torch.float32),
        labels=labels.view(torch.int64),
        image_index=image_index.view(torch.int64),
        capped=capped.view(torch.bool),
        finite=finite.view(torch.bool),
    )
