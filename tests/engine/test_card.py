"""A model packed and loaded again is the same model: same digest, same rows."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from batchdet.config import ModelConfig
from batchdet.engine.card import pack_model
from batchdet.engine.checkpoint import load_model
from batchdet.errors import ModelError
from batchdet.records import ModelFiles, ModelInfo
from tests.engine.seeded import seeded_model

NAMES = ("__background__", "cat", "dog")


def loaded(architecture: str, folder: Path) -> tuple[nn.Module, ModelInfo]:
    """A small model of random weights, as a bare checkpoint loads."""
    torch.save(seeded_model(architecture, len(NAMES)).state_dict(), folder / "bare.pth")
    config = ModelConfig(reference="bare.pth", architecture=architecture, categories=NAMES, score_floor=0.01)
    return load_model(config, ModelFiles(folder / "bare.pth", None))


def write(files: dict[str, bytes], folder: Path) -> ModelFiles:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return ModelFiles(folder / "model.safetensors", folder / "model.json")


@pytest.mark.parametrize("architecture", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_a_packed_model_is_the_same_model(architecture: str, tmp_path: Path) -> None:
    module, info = loaded(architecture, tmp_path)
    files = pack_model(module, info, {"parent": "sha256:1"}, {"map": 0.5})
    assert list(files) == ["model.safetensors", "model.json"], "the card last"
    card = json.loads(files["model.json"])
    assert (card["architecture"], card["categories"]) == (architecture, list(NAMES))
    assert (card["lineage"], card["metrics"], card["score_floor"]) == ({"parent": "sha256:1"}, {"map": 0.5}, 0.01)
    again, told = load_model(ModelConfig(reference="packed"), write(files, tmp_path))
    assert (told.digest, card["model_digest"]) == (info.digest, info.digest)
    picture = [torch.rand(3, 90, 120, generator=torch.Generator().manual_seed(1))]
    with torch.inference_mode():
        first, second = module.eval()(picture)[0], again(picture)[0]
    assert torch.equal(first["labels"], second["labels"])


def test_input_size_and_normalisation_go_along(tmp_path: Path) -> None:
    module, info = loaded("fasterrcnn_mobilenet_v3_large_320_fpn", tmp_path)
    card = {"input_size": {"min_size": 200, "max_size": 300}, "normalisation": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    (tmp_path / "card.json").write_text(
        json.dumps({**card, "architecture": info.architecture, "categories": list(NAMES)})
    )
    module, info = load_model(ModelConfig(reference="x"), ModelFiles(tmp_path / "bare.pth", tmp_path / "card.json"))
    packed = json.loads(pack_model(module, info, {})["model.json"])
    assert {name: packed[name] for name in card} == card


def test_an_epsilon_of_torchvision_goes_along(tmp_path: Path) -> None:
    """torchvision runs some of its own weights without one; anybody's file gets the usual one unless its card says."""
    module, info = loaded("fasterrcnn_mobilenet_v3_large_320_fpn", tmp_path)
    frozen = [layer for layer in module.modules() if isinstance(layer, FrozenBatchNorm2d)]
    assert not frozen
    weights = {name: tensor for name, tensor in module.state_dict().items() if "num_batches_tracked" not in name}
    torch.save(weights, tmp_path / "frozen.pth")
    config = ModelConfig(reference="frozen.pth", architecture=info.architecture, categories=NAMES)
    _, usual_info = load_model(config, ModelFiles(tmp_path / "frozen.pth", None))
    base = {"architecture": info.architecture, "categories": list(NAMES), "frozen_norm_epsilon": 0.0}
    (tmp_path / "zero.json").write_text(json.dumps(base))
    module, info = load_model(ModelConfig(reference="x"), ModelFiles(tmp_path / "frozen.pth", tmp_path / "zero.json"))
    assert info.digest != usual_info.digest
    assert {layer.eps for layer in module.modules() if isinstance(layer, FrozenBatchNorm2d)} == {0.0}
    files = pack_model(module, info, {})
    assert json.loads(files["model.json"])["frozen_norm_epsilon"] == 0.0
    assert load_model(ModelConfig(reference="packed"), write(files, tmp_path))[1].digest == info.digest


def test_weights_that_are_not_the_models_are_not_packed(tmp_path: Path) -> None:
    module, info = loaded("ssdlite320_mobilenet_v3_large", tmp_path)
    with torch.no_grad():
        next(module.parameters()).add_(1)
    with pytest.raises(ModelError, match="its weights alone make another model"):
        pack_model(module, info, {})
