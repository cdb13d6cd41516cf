"""The rules of `torchvision.ops.batched_nms` that decide bits, whatever machine applies them. Knows no boxes."""

import numpy as np

LENIENT, ROUNDING = 1 - 1e-5, 1e-3
"""Factor of a threshold and pixels of a place that cover float32 rounding where pairs are only ruled out."""


def shift_limit(device_type: str) -> int:
    """Boxes of one image up to which `torchvision.ops.batched_nms` shifts them by group; then it loops over groups."""
    return 1_000 if device_type == "cpu" else 25_000


def float32_bound(threshold: float) -> float:
    """The largest float32 number a double threshold allows: above it is above the threshold, and nothing else is.

    torchvision compares a float32 IoU with a double threshold.
    """
    nearest = np.float32(threshold)
    return float(nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-1)))


def reach_of(iou_threshold: float) -> float:
    """Share of its side, from the threshold up, within which the near sides of a box's partners lie.

    IoU <= overlap along an axis / side, so a partner starts, or ends, within (1 - threshold) of it.
    """
    return 1 - iou_threshold * LENIENT
