"""A CPU runs the folded network only where it gives the same detections."""

from itertools import islice

import numpy as np
import torch
from torch import nn

from batchdet.config import ModelConfig
from batchdet.demo.scenes import draw_scenes
from batchdet.demo.shipped import shipped_model
from batchdet.engine.checkpoint import load_detector, load_model
from batchdet.engine.decode import decode
from batchdet.engine.families import FAMILIES
from batchdet.engine.folding import folded
from batchdet.records import ModelFiles
from tests.engine.seeded import batch_of, pictures, seeded_model

SSDLITE = "ssdlite320_mobilenet_v3_large"
SHIPPED = shipped_model() / "1"
CPU = torch.device("cpu")


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_trained_weights_run_folded_and_give_the_same_rows() -> None:
    files = ModelFiles(SHIPPED / "model.safetensors", SHIPPED / "model.json")
    detector = load_detector(ModelConfig(reference="shipped"), files, "cpu")
    assert detector.batch_images > 1, "the shipped checkpoint must run folded"
    plain, _ = load_model(ModelConfig(reference="shipped", score_floor=0.05), files)
    for scene in islice(draw_scenes(3, 12), 12):
        pixels = torch.from_numpy(decode(scene.data, 10**9).pixels.copy()).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            (expected,) = plain([pixels])
        above = expected["scores"] > 0.05
        found = detector.detect(batch_of(plain, [pixels]))
        assert found.labels.tolist() == expected["labels"][above].tolist()
        np.testing.assert_allclose(found.scores, expected["scores"][above], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected["boxes"][above], rtol=0, atol=1e-3)


def test_weights_that_folding_would_move_stay_as_they_are() -> None:
    """Seeded weights have channels of hardly any variance, where rounding grows beyond what counts as equal."""
    model = seeded_model(SSDLITE)
    settled, batch_images = FAMILIES[SSDLITE].settle(model, CPU)
    assert settled is model
    assert batch_images == 1


def test_folding_leaves_the_model_alone_and_no_norm_behind() -> None:
    model = seeded_model(SSDLITE)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = pictures((120, 160))
    fast = folded(model)
    assert norms(model) > 0
    assert norms(fast) == 0
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.inference_mode():
        (expected,), (found,) = model(images), fast(images)
    np.testing.assert_allclose(found["scores"][:20], expected["scores"][:20], atol=5e-3)
