"""A model reference becomes a detector: weights, categories, thresholds, digest. Knows local files only.

The one place that sets a model's own thresholds.
"""

import contextlib
import hashlib
import json
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from batchdet.config import ModelConfig
from batchdet.engine.backends.backend import Settings
from batchdet.engine.backends.choice import choose
from batchdet.engine.backends.graphs import graphs_folder
from batchdet.engine.detector import BACKGROUND, Detector
from batchdet.engine.families import FAMILIES
from batchdet.engine.family import Family
from batchdet.engine.model_detector import ModelDetector
from batchdet.engine.weights import check_finite, digest_weights, plain_weights, read_weights
from batchdet.errors import DownloadError, ModelError
from batchdet.records import InputSpec, ModelFiles, ModelInfo

TORCHVISION = "torchvision:"


_CARD_FIELDS: Mapping[str, type] = {
    "architecture": str,
    "categories": list,
    "input_size": dict,
    "normalisation": dict,
    "digests": dict,
    "metrics": dict,
    "lineage": dict,
}
_JSON_NAMES: Mapping[type, str] = {str: "a name", list: "a list", dict: "an object"}


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """Weights that still have no model.

    Attributes:
        torchvision_name: of the weights, where they are torchvision's own.
        card: the registry's; empty without one.
    """

    architecture: str
    categories: tuple[str, ...]
    weights: Mapping[str, Tensor]
    torchvision_name: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)


def load_detector(model: ModelConfig, files: ModelFiles | None, device: str, threads: int = 1) -> Detector:
    """Build the detector a job asks for.

    Args:
        model: reference, and for a bare file its architecture and categories.
        files: local files; None for a `torchvision:` reference, whose weights come from torch's hub cache.
        device: `cpu`, `cuda` or `cuda:0`.
        threads: of a backend that keeps its own.

    Raises:
        ModelError: unknown names, damaged or foreign files, weights that are not finite, heads that disagree with the
            categories, a backend that is not there or does not run the model.
    """
    module, info = load_model(model, files)
    family = FAMILIES[info.architecture]
    settings = Settings(torch.device(device), threads, model.precision, graphs_folder(info.digest))
    choice = choose(model.backend, family.parts(module), settings, partial(family.drift, module))
    return ModelDetector(info, module, family, choice, settings.device)


def load_model(model: ModelConfig, files: ModelFiles | None) -> tuple[nn.Module, ModelInfo]:
    """Torchvision's own model in eval mode on the CPU with the score floor set, and its identity.

    Args and errors are those of `load_detector`.
    """
    checkpoint = _from_torchvision(model.reference) if files is None else _from_files(model, files)
    family = FAMILIES[checkpoint.architecture]
    module = _build(family, checkpoint, model.reference)
    _apply_card(module, checkpoint.card, model.reference)
    family.thresholds(module).score_thresh = model.score_floor
    return module, identify_model(module, model.reference, checkpoint.architecture, checkpoint.categories)


def identify_model(module: nn.Module, reference: str, architecture: str, categories: tuple[str, ...]) -> ModelInfo:
    """The identity of a model at hand, as loading its files would give it.

    Args:
        module: torchvision's.
        reference: how people may call it.
        architecture: builder name.
        categories: names in label order, "__background__" first.
    """
    spec = read_input_spec(module)
    digest = _digest(architecture, categories, module, spec)
    return ModelInfo(reference, architecture, categories, digest, spec)


def _digest(architecture: str, categories: tuple[str, ...], module: nn.Module, spec: InputSpec) -> str:
    """Identity of all that decides a model's rows but thresholds: the same weights normalised otherwise differ."""
    # The same weights are run with or without an epsilon, by where they come from. The type of a normalisation is
    # left out: it follows from the training counters, which not every format has, and changes nothing.
    epsilons = sorted((name, float(layer.eps)) for name, layer in module.named_modules() if hasattr(layer, "eps"))
    settings = (architecture, categories, astuple(spec), epsilons)
    return digest_weights(module.state_dict(), settings)


def read_input_spec(model: Any) -> InputSpec:
    """How a torchvision model's own transform takes pictures."""
    transform = model.transform
    # torchvision writes a fixed size as (width, height).
    fixed = None if transform.fixed_size is None else (int(transform.fixed_size[1]), int(transform.fixed_size[0]))
    return InputSpec(
        fixed_size=fixed,
        min_size=int(transform.min_size[-1]),
        max_size=int(transform.max_size),
        size_divisible=int(transform.size_divisible),
        mean=_channels(transform.image_mean),
        std=_channels(transform.image_std),
    )


def _channels(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _from_torchvision(reference: str) -> _Checkpoint:
    architecture, _, wanted = reference.removeprefix(TORCHVISION).partition("@")
    _check_architecture(architecture, f"model.reference {reference}")
    choices = torchvision.models.get_model_weights(architecture)
    names = [choice.name for choice in choices]
    if wanted not in ("", "DEFAULT", *names):
        raise ModelError(f"model.reference {reference}: no such weights; {architecture} has {', '.join(names)}")
    weights = choices[wanted or "DEFAULT"]
    state = _fetch_torchvision(weights, reference)
    # COCO's list has "N/A" for the labels its makers dropped; those labels are never predicted.
    categories = tuple(weights.meta["categories"])
    return _Checkpoint(architecture, categories, plain_weights(state, reference), torchvision_name=weights.name)


def _fetch_torchvision(weights: Any, reference: str) -> Any:
    """The state dict from torch's hub cache, downloaded first where it is not there."""
    try:
        # torch.hub tells of a download on stdout, where results go
        with contextlib.redirect_stdout(sys.stderr):
            return weights.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    except URLError as error:
        raise DownloadError(
            f"model.reference {reference}: {weights.url} cannot be downloaded ({error.reason}); "
            f"put the file into {torch.hub.get_dir()}/checkpoints yourself"
        ) from error
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        place = f"{torch.hub.get_dir()}/checkpoints/{weights.url.rsplit('/', 1)[-1]}"
        raise ModelError(f"model.reference {reference}: {place} is damaged; delete it to download it again") from error


def _from_files(model: ModelConfig, files: ModelFiles) -> _Checkpoint:
    card = {} if files.card is None else _read_card(files.card, model.reference)
    architecture = model.architecture or card.get("architecture")
    categories = model.categories or card.get("categories")
    if not architecture:
        raise ModelError(f"model.architecture: required for {model.reference}; one of {', '.join(FAMILIES)}")
    _check_architecture(architecture, "model.architecture")
    if not categories:
        raise ModelError(
            f'model.categories: required for {model.reference}; names in label order, "{BACKGROUND}" first'
        )
    _check_categories(categories)
    _check_digest(card, files.weights, model.reference)
    return _Checkpoint(architecture, tuple(categories), read_weights(files.weights), card=card)


def _read_card(path: Path, reference: str) -> dict[str, Any]:
    """The card's fields that say something: a null says as little as a field that is not there."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model {reference}: its {path.name} is not a model card: {error}") from error
    if not isinstance(card, dict):
        raise ModelError(f"model {reference}: its {path.name} is not a model card: expected fields like architecture")
    card = {name: value for name, value in card.items() if value is not None}
    for name, kind in _CARD_FIELDS.items():
        if not isinstance(card.get(name, kind()), kind):
            raise ModelError(f"model {reference}: {name} of its {path.name} must be {_JSON_NAMES[kind]}")
    if not all(isinstance(name, str) for name in card.get("categories", ())):
        raise ModelError(f"model {reference}: categories of its {path.name} must be names")
    return card


def _check_digest(card: Mapping[str, Any], weights: Path, reference: str) -> None:
    wanted = card.get("digests", {}).get(weights.name)
    if wanted is None:
        return
    with weights.open("rb") as file:
        found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise ModelError(
            f"model {reference}: its {weights.name} is not the file its model card describes: {found} "
            f"instead of {wanted}"
        )


def _check_architecture(name: str, field: str) -> None:
    if name not in FAMILIES:
        raise ModelError(f"{field}: unknown architecture {name!r}; known: {', '.join(FAMILIES)}")


def _check_categories(categories: Sequence[str]) -> None:
    if categories[0] != BACKGROUND:
        raise ModelError(f'model.categories: the first must be "{BACKGROUND}" (label 0), got {categories[0]!r}')
    twice = sorted({name for name in categories if list(categories).count(name) > 1})
    if twice:
        raise ModelError(f"model.categories: named twice: {', '.join(twice)}")


def _build(family: Family, checkpoint: _Checkpoint, reference: str) -> nn.Module:
    try:
        classes = family.count_classes(checkpoint.weights)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ModelError(f"{reference}: these weights have no heads of {checkpoint.architecture}") from error
    named = len(checkpoint.categories)
    if classes != named:
        raise ModelError(f"{reference}: the checkpoint's heads have {classes} classes, categories names {named}")
    module = family.build(checkpoint.architecture, classes, checkpoint.weights, checkpoint.torchvision_name)
    try:
        problems = module.load_state_dict(dict(checkpoint.weights), strict=False)
    except RuntimeError as error:
        raise ModelError(f"{reference}: {' '.join(str(error).split())}") from error
    wrong = {"missing": problems.missing_keys, "unexpected": problems.unexpected_keys}
    for kind, keys in wrong.items():
        if keys:
            raise ModelError(
                f"{reference} does not fit {checkpoint.architecture}: {len(keys)} {kind} tensors, "
                f"e.g. {', '.join(keys[:3])}"
            )
    # Of the module, since taking over a float64 tensor may overflow.
    check_finite(module.state_dict(), reference)
    return module.eval().requires_grad_(False)


def _apply_card(module: Any, card: Mapping[str, Any], reference: str) -> None:
    """Give the model's own transform the input size and normalisation of the card, and its layers their epsilon."""
    transform = module.transform
    try:
        size = card.get("input_size", {})
        if "min_size" in size:
            transform.min_size, transform.max_size = (int(size["min_size"]),), int(size["max_size"])
        elif size:
            transform.fixed_size = (int(size["width"]), int(size["height"]))
        normalisation = card.get("normalisation")
        if normalisation is not None:
            transform.image_mean = list(_channels(normalisation["mean"]))
            transform.image_std = list(_channels(normalisation["std"]))
        if "frozen_norm_epsilon" in card:
            for layer in module.modules():
                if isinstance(layer, FrozenBatchNorm2d):
                    layer.eps = float(card["frozen_norm_epsilon"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{reference}: the model card's input_size must be {{height, width}} or {{min_size, max_size}}, "
            "its normalisation {mean, std} of three numbers each, its frozen_norm_epsilon a number"
        ) from error
