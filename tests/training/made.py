"""Made pictures and targets for training tests. Knows no files."""

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from batchdet.training.targets import Target
from tests.engine.seeded import pictures, seeded_model

NO_BOXES = torch.zeros(0, 4)


def target(
    boxes: list[list[float]],
    labels: list[int] | None = None,
    weights: list[float] | None = None,
    ignored: list[list[float]] | None = None,
    **rest: Any,
) -> Target:
    count = len(boxes)
    return Target(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels or [1] * count, dtype=torch.int64),
        torch.tensor(weights or [1.0] * count),
        torch.tensor(ignored or [], dtype=torch.float32).reshape(-1, 4),
        **rest,
    )


def small_rcnn(num_classes: int = 4, **limits: Any) -> nn.Module:
    """A Faster R-CNN whose pictures are resized to 128 pixels."""
    small = {"min_size": 128, "max_size": 192, "rpn_pre_nms_top_n_train": 200, "rpn_post_nms_top_n_train": 100}
    return still(seeded_model("fasterrcnn_mobilenet_v3_large_320_fpn", num_classes, **small | limits))


def small_ssd(num_classes: int = 4, **limits: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=num_classes, **limits
    )
    return still(model)


def still(model: Any) -> nn.Module:
    """Training mode as a lesson sets it, its normalisation frozen: one picture has no statistics on small maps."""
    model.train()
    model.transform.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def scene(count: int = 2, seed: int = 0) -> tuple[list[Tensor], list[Target]]:
    """Pictures in [0, 1] with objects at several sizes; the last has none when there are more than two."""
    made = pictures(*[(120, 160)] * count, seed=seed)
    boxes = [
        [[10.0, 12.0, 60.0, 70.0], [80.0, 20.0, 150.0, 110.0]],
        [[30.0, 30.0, 120.0, 100.0], [5.0, 80.0, 40.0, 118.0], [100.0, 5.0, 130.0, 25.0]],
    ]
    targets = [target(boxes[n % 2], [1 + (n + k) % 3 for k in range(len(boxes[n % 2]))]) for n in range(count)]
    if count > 2:
        targets[-1] = target([])
    return made, targets


def stock_targets(targets: list[Target]) -> list[dict[str, Tensor]]:
    """The same for torchvision's own training."""
    return [{"boxes": one.boxes.clone(), "labels": one.labels.clone()} for one in targets]
