"""The steps from head outputs to detections, and who takes them on which machine. Knows no model.

On a CPU an operation costs its dispatcher: `host_steps` works on numpy's columns and skips what a batch does not need.
On an accelerator it costs a launch, and waiting for a count costs more: `device_steps` does the same for a batch of
any size with few of both. It runs anywhere, and both give the same bits.
Shape shorthand: N entries of a batch, B images, R rows of logits, C classes with the background.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from batchdet.engine import device_steps, host_steps
from batchdet.engine.candidates import Candidates, TopAnchors
from batchdet.engine.frames import Frame


class Steps(Protocol):
    """What the postprocessing of a batch is made of. Equal scores keep the order of the entries in every step."""

    def all_finite(self, *outputs: Tensor) -> Tensor:
        """[M] bool: every number at that place is finite, in all of the tensors [M, ...]."""
        ...

    def finite_images(self, rows_of: Tensor, num_images: int, *outputs: Tensor) -> Tensor:
        """[B] bool: every number of an image's rows is finite, in all of the tensors [R, ...]; rows_of: [R] int64."""
        ...

    def confident_entries(
        self, logits: Tensor, rows_of: Tensor | None, usable: Tensor, score_thresh: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Entries whose softmax passes the threshold.

        Args:
            logits: [R, C]; class 0 is the background, and never an entry. [B, R / B, C] where `rows_of` is None.
            rows_of: [R] int64, the image of every row.
            usable: [B] bool; rows of other images give no entries.
            score_thresh: in (0, 1).

        Returns:
            Rows [N] and classes [N], both ascending in this order, and scores [N].
        """
        ...

    def beyond_limit(self, segments: Tensor, scores: Tensor, num_segments: int, limit: int) -> Tensor | None:
        """Which entries come after the `limit` best of their segment.

        Args:
            segments: [N] int64, under 2**31.
            scores: [N] float32, not negative.
            num_segments: above all segments.
            limit: entries of a segment.

        Returns:
            [N] bool; None where no segment has as many.
        """
        ...

    def boxes(
        self, coder: Any, codes: Tensor, references: Tensor, image_index: Tensor, frames: Sequence[Frame]
    ) -> Tensor:
        """Boxes decoded, and clipped to the frame of their image; see `frames.decode_boxes`.

        Args:
            coder: holds `weights` and `bbox_xform_clip`.
            codes: [N, 4] float32 (dx, dy, dw, dh).
            references: [N, 4] float32 xyxy.
            image_index: [N] int64.
            frames: B frames.

        Returns:
            [N, 4] float32 xyxy.
        """
        ...

    def with_sides(self, found: Candidates, smallest: float, score_thresh: float) -> Candidates:
        """Those with both sides at least `smallest` pixels, and a score of at least the threshold.

        `torchvision.ops.remove_small_boxes` measures the sides. Nothing that is NaN is among them.
        """
        ...

    def survivors(
        self, found: Candidates, num_images: int, iou_threshold: float, limit: int
    ) -> tuple[Candidates, Tensor]:
        """Candidates left by greedy NMS as `torchvision.ops.batched_nms` decides it image by image, and by a cap.

        Args:
            found: of B images; boxes compete inside a label of an image.
            num_images: B.
            iou_threshold: a box goes when its IoU with a kept one is above this.
            limit: the cap, of an image.

        Returns:
            By image, then from the highest score; and [B] bool, the cap removed some.
        """
        ...

    def sweep_nms(self, boxes: Tensor, segments: Tensor, iou_threshold: float) -> Tensor:
        """Greedy NMS inside every segment with the arithmetic of `torchvision.ops.nms`.

        Args:
            boxes: [N, 4] float32 xyxy, not negative.
            segments: [N] int64, in any order; earlier entries suppress later ones.
            iou_threshold: a box goes when its IoU with a kept one is above this.

        Returns:
            [N] bool, the kept.
        """
        ...

    def top_anchors(self, objectness: Sequence[Tensor], deltas: Sequence[Tensor], limit: int) -> TopAnchors:
        """The `limit` best anchors of every level of every image.

        Args:
            objectness: logits [B, K, H, W] of every level.
            deltas: box codes [B, K * 4, H, W] of every level.
            limit: anchors of a level.
        """
        ...


HOST: Steps = host_steps
DEVICE: Steps = device_steps


def steps_for(device: torch.device) -> Steps:
    """Those of a device."""
    return HOST if device.type == "cpu" else DEVICE
