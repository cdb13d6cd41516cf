"""The checkpoint that comes with the package: small, honest, and good on scenes it never saw."""

import hashlib
import io
import json
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageOps
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.ssd import SSD
from torchvision.transforms.functional import to_tensor

from batchdet.demo.scenes import Scene, draw_scenes
from batchdet.demo.shapes import SHAPES
from batchdet.demo.shipped import shipped_model
from batchdet.demo.train_checkpoint import CATEGORIES, TRAINING_SEED, VALIDATION_SEED
from batchdet.demo.truth import ImageFindings, ImageTruth, score_against_truth

UNSEEN_SEED = 4_711
VERSION = json.loads((shipped_model() / "promoted.json").read_text(encoding="utf-8"))["version"]
FOLDER = shipped_model() / VERSION


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
    return tree


def stock_model(card: dict[str, Any]) -> SSD:
    """Torchvision's own model with the shipped weights: the oracle, none of our engine."""
    model: SSD = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=len(card["categories"]), score_thresh=card["score_floor"]
    )
    weights = safetensors.torch.load_file(FOLDER / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.eval()


def find(model: SSD, scene: Scene) -> ImageFindings:
    with Image.open(io.BytesIO(scene.data)) as image:
        picture = to_tensor(ImageOps.exif_transpose(image).convert("RGB"))
    with torch.inference_mode():
        found = model([picture])[0]
    return ImageFindings(found["boxes"].numpy(), found["scores"].numpy(), found["labels"].numpy())


def test_it_finds_the_objects_of_unseen_scenes(card: dict[str, Any]) -> None:
    assert UNSEEN_SEED not in (TRAINING_SEED, VALIDATION_SEED)
    model = stock_model(card)
    scenes = {scene.name: scene for scene in draw_scenes(UNSEEN_SEED, 110)}
    truth = {name: ImageTruth(scene.boxes, scene.labels) for name, scene in scenes.items()}
    score = score_against_truth(truth, {name: find(model, scene) for name, scene in scenes.items()}, CATEGORIES)
    assert score.map_50 > 0.8
    # The card's figure was measured on other unseen scenes: it may not promise what these do not hold.
    assert score.map_50 == pytest.approx(card["metrics"]["map_50"], abs=0.05)
    assert min(score.per_category.values()) > 0.4, "no category is left behind"


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in shipped_model().rglob("*") if file.is_file()) <= 8 * 2**20


def test_its_card_is_about_these_weights(card: dict[str, Any]) -> None:
    data = (FOLDER / "model.safetensors").read_bytes()
    assert card["digests"]["model.safetensors"] == "sha256:" + hashlib.sha256(data).hexdigest()
    assert tuple(card["categories"]) == ("__background__", *SHAPES)
    assert card["lineage"]["training_seed"] == TRAINING_SEED


def test_its_weights_are_finite() -> None:
    weights = safetensors.torch.load_file(FOLDER / "model.safetensors")
    floating = [tensor for tensor in weights.values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {torch.float16}
    assert all(bool(np.isfinite(tensor.numpy()).all()) for tensor in floating)
