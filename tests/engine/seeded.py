"""Detectors with seeded weights that behave like trained ones: normalisation calibrated, heads peaky. No files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from batchdet.engine.backends.backend import Precision, Settings
from batchdet.engine.backends.choice import Choice
from batchdet.engine.backends.eager import Eager
from batchdet.engine.detector import Batch
from batchdet.engine.families import FAMILIES
from batchdet.engine.model_detector import ModelDetector
from batchdet.engine.parts import Networks
from batchdet.records import ModelInfo

TWO_SIZES = ((120, 160), (240, 321))
"""Pictures that are resized differently and padded to one shape."""

STAGES: tuple[dict[str, float], ...] = (
    {
        "head.classification_head": 1.5,
        "head.regression_head": 1.0,
        "rpn.head.cls_logits": 1.5,
        "rpn.head.bbox_pred": 0.3,
    },
    {"roi_heads.box_predictor.cls_score": 2.5, "roi_heads.box_predictor.bbox_pred": 1.0},
)
"""Standard deviation the outputs of each head are brought to; a later stage sees what an earlier one gives."""


def pictures(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    """Pictures of (height, width) with structure at several scales, [3, H, W] float32 in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for height, width in sizes:
        layers = [torch.rand(1, 3, side, side + 1, generator=generator) for side in (2, 5, 11, 23)]
        layers = [nn.functional.interpolate(layer, (height, width), mode="bilinear") for layer in layers]
        made.append(torch.stack(layers).mean(0)[0].contiguous())
    return made


def seeded_model(architecture: str, num_classes: int = 5, seed: int = 0, **limits: Any) -> nn.Module:
    """A stock torchvision detector in eval mode whose scores spread over (0, 1) on `pictures(*TWO_SIZES)`."""
    torch.manual_seed(seed)
    model: nn.Module = torchvision.models.get_model(
        architecture, weights=None, weights_backbone=None, num_classes=num_classes, **limits
    ).eval()
    calibration = pictures(*TWO_SIZES)
    with torch.inference_mode():
        _calibrate_norms(model, calibration)
        for spreads in STAGES:
            _spread_outputs(model, spreads, calibration)
    return model


def batch_of(model: Any, images: list[Tensor]) -> Batch:
    """The batch torchvision's own transform makes of the images."""
    prepared, _ = model.transform(images)
    originals = tuple((int(image.shape[-2]), int(image.shape[-1])) for image in images)
    return Batch(prepared.tensors, tuple(prepared.image_sizes), originals)


def eager_networks(architecture: str, model: Any, precision: Precision = "fp32") -> Networks:
    """The model's networks as torch runs them."""
    settings = Settings(torch.device("cpu"), 1, precision, Path("unused"))
    return {name: Eager().load(name, part, settings) for name, part in FAMILIES[architecture].parts(model).items()}


def eager_detector(info: ModelInfo, model: Any, precision: Precision = "fp32") -> ModelDetector:
    """The model as a Detector, run by torch."""
    choice = Choice(eager_networks(info.architecture, model, precision), f"torch/{precision}")
    return ModelDetector(info, model, FAMILIES[info.architecture], choice, torch.device("cpu"))


def _calibrate_norms(model: nn.Module, images: list[Tensor]) -> None:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    if norms:
        model(images)
        model.eval()


def _spread_outputs(model: nn.Module, spreads: dict[str, float], images: list[Tensor]) -> None:
    """Scale the predicting layers until their outputs have the standard deviation asked for."""
    layers = {
        module: spread
        for name, module in model.named_modules()
        for head, spread in spreads.items()
        if name.startswith(head) and isinstance(module, nn.Conv2d | nn.Linear) and getattr(module, "groups", 1) == 1
    }
    if not layers:
        return
    with _recorded(list(layers)) as outputs:
        model(images)
    for layer, spread in layers.items():
        deviation = torch.cat([output.flatten() for output in outputs[layer]]).std()
        layer.weight.data.mul_(spread / deviation)


@contextmanager
def _recorded(layers: list[Any]) -> Iterator[dict[Any, list[Tensor]]]:
    outputs: dict[Any, list[Tensor]] = {layer: [] for layer in layers}

    def recorder(layer: Any) -> Callable[..., None]:
        return lambda _module, _inputs, output: outputs[layer].append(output)

    hooks = [layer.register_forward_hook(recorder(layer)) for layer in layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
