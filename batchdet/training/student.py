"""The model a training starts from: a teacher, perhaps under another head, a backbone, or chance. Knows no losses.

Category rows: the predicting layers hold the outputs of a category in fixed rows, so a category that both models know
keeps what the teacher learned of it.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from batchdet.config import ModelConfig
from batchdet.engine.checkpoint import load_model
from batchdet.engine.families import FAMILIES
from batchdet.errors import ModelError
from batchdet.records import ModelFiles, ModelInfo
from batchdet.training.config import StartConfig
from batchdet.training.seeds import derive_seed, torch_seed

_CATEGORY_LAYERS = {
    "head.classification_head.": 1,
    "roi_heads.box_predictor.cls_score": 1,
    "roi_heads.box_predictor.bbox_pred": 4,
}
"""Where predicting layers are, and how many neighbouring rows a category has there."""
_NEW_WEIGHTS = 4


@dataclass(frozen=True, slots=True)
class Student:
    """A model to train.

    Attributes:
        model: torchvision's, on the CPU, every parameter trainable.
        architecture: builder name.
        categories: names in label order, "__background__" first.
        parent: identity of the teacher's model; None without one.
    """

    model: Any
    architecture: str
    categories: tuple[str, ...]
    parent: ModelInfo | None


def build_student(start: StartConfig, files: ModelFiles | None, seed: int) -> Student:
    """The model a training starts from.

    Args:
        start: which.
        files: of the teacher on this machine; None for a `torchvision:` reference and without a teacher.
        seed: of new weights.

    Raises:
        ModelError: unknown names, or weights that cannot be had or do not fit.
    """
    if start.weights == "teacher":
        student = _from_teacher(start, files, seed)
    else:
        architecture, categories = start.architecture or "", start.categories or ()
        student = Student(_new_model(architecture, len(categories), start, seed), architecture, categories, None)
    FAMILIES[student.architecture].thresholds(student.model).score_thresh = start.score_floor
    student.model.requires_grad_(True)
    return student


def _new_model(architecture: str, num_classes: int, start: StartConfig, seed: int) -> nn.Module:
    if architecture not in FAMILIES:
        raise ModelError(f"start.architecture: unknown {architecture!r}; known: {', '.join(FAMILIES)}")
    backbone = "DEFAULT" if start.weights == "backbone" else None
    try:
        with torch_seed(derive_seed(seed, _NEW_WEIGHTS), torch.device("cpu")):
            model: nn.Module = torchvision.models.get_model(
                architecture, weights=None, weights_backbone=backbone, num_classes=num_classes
            )
    except (URLError, pickle.UnpicklingError, OSError, EOFError) as error:
        raise ModelError(
            f"start.weights=backbone: torchvision's backbone of {architecture} cannot be had ({error}); "
            f"put its file into {torch.hub.get_dir()}/checkpoints"
        ) from error
    return model


def _from_teacher(start: StartConfig, files: ModelFiles | None, seed: int) -> Student:
    teacher, info = load_model(
        ModelConfig(
            reference=start.reference or "",
            architecture=start.architecture,
            categories=start.teacher_categories,
            score_floor=start.score_floor,
        ),
        files,
    )
    categories = start.categories or info.categories
    weights = teacher.state_dict()
    with torch_seed(derive_seed(seed, _NEW_WEIGHTS), torch.device("cpu")):
        model: Any = FAMILIES[info.architecture].build(info.architecture, len(categories), weights, None)
    settled = _same_norms(weights, teacher, model)
    model.load_state_dict(move_categories(settled, info.categories, model, categories))
    _same_input(model, teacher)
    return Student(model, info.architecture, categories, info)


def _same_norms(weights: Mapping[str, Tensor], teacher: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """Weights that act in the model's frozen normalisation as they did in the teacher's.

    torchvision runs some of its weights with another epsilon, which no file says: it is taken into the variance.
    """
    layers = dict(model.named_modules())
    settled = dict(weights)
    for name, layer in teacher.named_modules():
        if isinstance(layer, FrozenBatchNorm2d):
            settled[f"{name}.running_var"] = weights[f"{name}.running_var"] + (layer.eps - layers[name].eps)
    return settled


def _same_input(model: Any, teacher: Any) -> None:
    for setting in ("min_size", "max_size", "fixed_size", "image_mean", "image_std"):
        setattr(model.transform, setting, getattr(teacher.transform, setting))


def move_categories(
    weights: Mapping[str, Tensor], known: Sequence[str], model: nn.Module, wanted: Sequence[str]
) -> dict[str, Tensor]:
    """Weights for other categories: rows of names both know are kept, those of new names are the model's own.

    Args:
        weights: named tensors of a model with the categories `known`.
        known: its categories, in label order.
        model: of the same architecture, with the categories `wanted`.
        wanted: in label order.
    """
    moved = dict(weights)
    pairs = [(known.index(name), place) for place, name in enumerate(wanted) if name in known]
    old, new = (list(places) for places in zip(*pairs, strict=True))
    for name, rows in _category_tensors(model).items():
        target = model.state_dict()[name].clone()
        source = weights[name].reshape(-1, len(known), rows, *target.shape[1:])
        target.view(-1, len(wanted), rows, *target.shape[1:])[:, new] = source[:, old]
        moved[name] = target
    return moved


def _category_tensors(model: nn.Module) -> dict[str, int]:
    """Tensors that hold rows by category, with how many neighbouring rows each category has."""
    found: dict[str, int] = {}
    for name, layer in model.named_modules():
        rows = next((rows for prefix, rows in _CATEGORY_LAYERS.items() if name.startswith(prefix)), None)
        # SSDlite's heads begin with a layer per channel that knows no categories.
        if rows and isinstance(layer, nn.Conv2d | nn.Linear) and getattr(layer, "groups", 1) == 1:
            found |= {f"{name}.weight": rows, f"{name}.bias": rows}
    return found


def freeze_stages(model: Any, count: int) -> None:
    """Fix the weights of the backbone's first stages: the layers up to each halving of the picture's resolution.

    Raises:
        ModelError: the backbone has fewer stages.
    """
    stages = backbone_stages(model)
    if count > len(stages):
        raise ModelError(f"network.frozen_stages {count}: this backbone has {len(stages)}")
    for stage in stages[:count]:
        for layer in stage:
            layer.requires_grad_(False)


def backbone_stages(model: Any) -> list[list[nn.Module]]:
    """The backbone's layers from the picture on; SSD's extra layers and feature pyramids are not counted."""
    backbone = model.backbone
    stages: list[list[nn.Module]] = [[]]
    for name, layer in (backbone.body if hasattr(backbone, "body") else backbone.features).named_children():
        # SSDlite cuts MobileNet in two plain sequences, the second of which begins a stage.
        parts = (
            list(layer.named_children()) if type(layer) is nn.Sequential and "layer" not in name else [(name, layer)]
        )
        for place, (part_name, part) in enumerate(parts):
            begins = _begins_stage(part_name, part) or (len(parts) > 1 and place == 0)
            if begins and any(True for inner in stages[-1] for _ in inner.parameters()):
                stages.append([])
            stages[-1].append(part)
    return stages


def _begins_stage(name: str, layer: nn.Module) -> bool:
    """VGG pools, ResNet names its stages, MobileNet marks the blocks that halve."""
    return isinstance(layer, nn.MaxPool2d) or name.startswith("layer") or bool(getattr(layer, "_is_cn", False))
