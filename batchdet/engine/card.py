"""A loaded model becomes the files of a model folder: weights and the card that explains them. Knows no storage.

The opposite of `checkpoint.load_model`.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from batchdet.config import ModelConfig, PolicyConfig
from batchdet.engine.checkpoint import load_model, read_input_spec
from batchdet.engine.families import FAMILIES
from batchdet.errors import ModelError
from batchdet.records import ModelFiles, ModelInfo

WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "model.json"


def pack_model(
    model: nn.Module,
    info: ModelInfo,
    lineage: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    policy: PolicyConfig | None = None,
) -> dict[str, bytes]:
    """The files of a model folder, checked to load as the very model.

    Args:
        model: torchvision's, with its weights as they are to be stored.
        info: its architecture and categories, and the digest it must load with.
        lineage: what made the weights: `parent` (a model's digest or null), `run_ids`, `gold`, `config`, …
        metrics: as `evaluate` prints them.
        policy: what `label` should accept of it, for people; None for the default policy.

    Returns:
        `model.safetensors` and `model.json`, in the order in which they are to be written.

    Raises:
        ModelError: the files would load as another model.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    weights = safetensors.torch.save(tensors)
    card = {
        "architecture": info.architecture,
        "categories": list(info.categories),
        **_input(model),
        "score_floor": FAMILIES[info.architecture].thresholds(model).score_thresh,
        "policy": (policy or PolicyConfig()).model_dump(mode="json"),
        "metrics": dict(metrics or {}),
        "lineage": dict(lineage),
        "model_digest": info.digest,
        "digests": {WEIGHTS_NAME: "sha256:" + hashlib.sha256(weights).hexdigest()},
    }
    files = {WEIGHTS_NAME: weights, CARD_NAME: (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode()}
    _require_same_model(files, info)
    return files


def _input(model: nn.Module) -> dict[str, Any]:
    """How the model takes pictures, as `checkpoint` applies it when it loads."""
    spec = read_input_spec(model)
    size = (
        {"min_size": spec.min_size, "max_size": spec.max_size}
        if spec.fixed_size is None
        else {"height": spec.fixed_size[0], "width": spec.fixed_size[1]}
    )
    found: dict[str, Any] = {"input_size": size, "normalisation": {"mean": list(spec.mean), "std": list(spec.std)}}
    epsilons = {float(layer.eps) for layer in model.modules() if isinstance(layer, FrozenBatchNorm2d)}
    if len(epsilons) == 1:
        found["frozen_norm_epsilon"] = epsilons.pop()
    return found


def _require_same_model(files: Mapping[str, bytes], info: ModelInfo) -> None:
    with tempfile.TemporaryDirectory(prefix="batchdet-model-") as folder:
        paths = {name: Path(folder) / name for name in files}
        for name, data in files.items():
            paths[name].write_bytes(data)
        local = ModelFiles(weights=paths[WEIGHTS_NAME], card=paths[CARD_NAME])
        _, loaded = load_model(ModelConfig(reference=info.reference), local)
    if loaded.digest != info.digest:
        raise ModelError(f"model {info.reference}: its weights alone make another model ({loaded.digest})")
