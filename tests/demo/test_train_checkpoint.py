"""The training script's short cuts give what torchvision's own paths give; its card says what it wrote."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torchvision.models.detection.ssd import SSD

from batchdet.demo.card import write_model_folder
from batchdet.demo.pool import INPUT_SIDE, Pool, draw_pool, make_batch
from batchdet.demo.train_checkpoint import (
    CATEGORIES,
    METRICS_SEED,
    MovingAverage,
    evaluate,
    loss_of,
    new_model,
    publish,
)
from batchdet.demo.truth import ImageFindings, ImageTruth, TruthScore, score_against_truth


@pytest.fixture(scope="module")
def pool() -> Pool:
    drawn = draw_pool(11, 3, 1)
    empty = np.zeros((1, INPUT_SIDE, INPUT_SIDE, 3), np.uint8)
    return Pool(
        np.concatenate([drawn.pixels, empty]),
        (*drawn.boxes, np.zeros((0, 4), np.float32)),
        (*drawn.labels, np.zeros(0, np.int64)),
    )


@pytest.fixture(scope="module")
def model() -> SSD:
    torch.manual_seed(3)
    return new_model()


def test_the_loss_is_torchvisions(model: SSD, pool: Pool) -> None:
    pictures, targets = make_batch(pool, np.arange(4), INPUT_SIDE, np.random.default_rng(1))
    model.train()
    with torch.no_grad():
        ours = loss_of(model, pictures, targets)
        theirs = model(list(pictures * 0.5 + 0.5), targets)
    torch.testing.assert_close(ours, theirs["bbox_regression"] + theirs["classification"], rtol=1e-3, atol=1e-3)


def test_the_score_is_what_the_whole_model_scores(model: SSD, pool: Pool) -> None:
    model.eval()
    with torch.no_grad():
        found = model(list(torch.from_numpy(pool.pixels).permute(0, 3, 1, 2) / 255))
    names = [str(number) for number in range(len(pool.boxes))]
    truth = {
        name: ImageTruth(boxes * INPUT_SIDE, labels)
        for name, boxes, labels in zip(names, pool.boxes, pool.labels, strict=True)
    }
    findings = {
        name: ImageFindings(one["boxes"].numpy(), one["scores"].numpy(), one["labels"].numpy())
        for name, one in zip(names, found, strict=True)
    }
    stock = score_against_truth(truth, findings, CATEGORIES)
    assert evaluate(model, pool, INPUT_SIDE).map == pytest.approx(stock.map, abs=1e-3)


def test_the_average_ends_where_the_weights_stay(model: SSD) -> None:
    average = MovingAverage(model, keep=0.5)
    moved = new_model()
    for _ in range(60):
        average.update(moved)
    for mine, theirs in zip(average.model.state_dict().values(), moved.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_card_tells_of_the_weights_beside_it(model: SSD, tmp_path: Path) -> None:
    score = TruthScore(map=0.5, map_50=0.75, per_category={"disc": 0.5}, num_images=4, num_objects=9)
    write_model_folder(tmp_path / "1", model, CATEGORIES, score, {"steps": 5})
    data = (tmp_path / "1" / "model.safetensors").read_bytes()
    card = json.loads((tmp_path / "1" / "model.json").read_text(encoding="utf-8"))
    assert card["digests"] == {"model.safetensors": "sha256:" + hashlib.sha256(data).hexdigest()}
    assert card["categories"] == list(CATEGORIES)
    assert card["input_size"] == {"height": 320, "width": 320}
    assert card["metrics"]["map_50"] == 0.75
    assert card["lineage"] == {"steps": 5}
    stored = safetensors.torch.load(data)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(stored[name].to(tensor.dtype), tensor, rtol=1e-3, atol=1e-6)


def test_what_is_published_is_measured_as_stored(model: SSD, pool: Pool, tmp_path: Path) -> None:
    flattering = TruthScore(map=0.9, map_50=0.9, per_category={}, num_images=1, num_objects=1)
    write_model_folder(tmp_path / "best", model, CATEGORIES, flattering, {"steps": 5})
    score = publish(tmp_path, pool)
    promoted = json.loads((tmp_path / "scenes" / "promoted.json").read_text(encoding="utf-8"))["version"]
    version = tmp_path / "scenes" / promoted
    card = json.loads((version / "model.json").read_text(encoding="utf-8"))
    assert card["metrics"]["map"] == pytest.approx(score.map, abs=1e-4)
    assert card["metrics"]["num_images"] == len(pool.boxes)
    assert card["lineage"] == {"steps": 5, "metrics_seed": METRICS_SEED}
    assert (version / "model.safetensors").read_bytes() == (tmp_path / "best" / "model.safetensors").read_bytes()
