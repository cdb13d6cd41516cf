from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.ssd import SSDHead
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import FrozenBatchNorm2d

from batchdet.config import ModelConfig
from batchdet.demo.shipped import shipped_model
from batchdet.engine.card import pack_model
from batchdet.engine.checkpoint import identify_model, load_model
from batchdet.engine.families import FAMILIES
from batchdet.errors import ModelError
from batchdet.records import ModelFiles
from batchdet.storage.registry import fetch_model
from batchdet.training.config import StartConfig
from batchdet.training.student import _same_norms, backbone_stages, build_student, freeze_stages, move_categories
from tests.engine.seeded import TWO_SIZES, batch_of, eager_networks, pictures

BACKGROUND = "__background__"
REGISTRY = shipped_model()
TEACHER = StartConfig(reference=str(REGISTRY))


def teacher_files() -> ModelFiles | None:
    return fetch_model(str(REGISTRY), {})


def detections(model: Any, architecture: str) -> tuple[torch.Tensor, ...]:
    model.eval()
    with torch.inference_mode():
        networks = eager_networks(architecture, model)
        found = FAMILIES[architecture].detect(model, networks, batch_of(model, pictures(*TWO_SIZES)))
    return found.boxes, found.scores, found.labels


def test_the_teacher_is_taken_over_and_every_weight_trains() -> None:
    student = build_student(TEACHER, teacher_files(), seed=0)
    stock, info = load_model(ModelConfig(reference=str(REGISTRY)), teacher_files())
    assert (student.categories, student.parent) == (info.categories, info)
    assert all(weight.requires_grad for weight in student.model.parameters())
    for mine, theirs in zip(
        detections(student.model, info.architecture), detections(stock, info.architecture), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_shared_categories_keep_their_rows_under_another_head() -> None:
    categories = (BACKGROUND, "ring", "ellipse", "disc")
    student = build_student(StartConfig(reference=str(REGISTRY), categories=categories), teacher_files(), seed=0)
    stock, info = load_model(ModelConfig(reference=str(REGISTRY)), teacher_files())
    batch = batch_of(stock, pictures(*TWO_SIZES))
    with torch.inference_mode():
        wide, narrow = (
            model.head(list(model.backbone(batch.pixels).values()))["cls_logits"]
            for model in (stock, student.model.eval())
        )
    assert narrow.shape[-1] == 4
    for place, name in enumerate(categories):
        if name in info.categories:
            torch.testing.assert_close(narrow[..., place], wide[..., info.categories.index(name)])


def headed(architecture: str, num_classes: int) -> Any:
    """The predicting layers of an architecture on small maps: whole models take seconds to draw."""
    if architecture == "fasterrcnn":
        return nn.ModuleDict({"roi_heads": nn.ModuleDict({"box_predictor": FastRCNNPredictor(16, num_classes)})})
    head = SSDHead([8, 16], [4, 6], num_classes)
    if architecture == "ssdlite":
        head = SSDLiteHead([8, 16], [4, 6], num_classes, nn.BatchNorm2d)
    return nn.ModuleDict({"head": head})


@pytest.mark.parametrize("architecture", ["ssd", "ssdlite", "fasterrcnn"])
@pytest.mark.parametrize("wanted", [(BACKGROUND, "cow", "cat"), (BACKGROUND, "ant", "cow", "cat")])
def test_categories_move_by_name(architecture: str, wanted: tuple[str, ...]) -> None:
    known = (BACKGROUND, "cat", "dog", "cow")
    teacher, model = headed(architecture, 4), headed(architecture, len(wanted))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moved = move_categories(teacher.state_dict(), known, model, wanted)
    model.load_state_dict(moved)
    small = headed(architecture, 2).state_dict()
    by_category = [name for name, tensor in before.items() if tensor.shape != small[name].shape]
    for name, old in teacher.state_dict().items():
        if name not in by_category:
            assert torch.equal(moved[name], old)
            continue
        rows = 4 if "bbox_pred" in name else 1
        old, new, fresh = (
            tensor.reshape(-1, count, rows, *tensor.shape[1:])
            for tensor, count in ((old, 4), (moved[name], len(wanted)), (before[name], len(wanted)))
        )
        for place, category in enumerate(wanted):
            expected = old[:, known.index(category)] if category in known else fresh[:, place]
            assert torch.equal(new[:, place], expected)


def test_new_weights_come_from_the_seed() -> None:
    start = StartConfig(weights="scratch", architecture="ssdlite320_mobilenet_v3_large", categories=(BACKGROUND, "cat"))
    first, again, other = (save(build_student(start, None, seed).model.state_dict()) for seed in (1, 1, 2))
    assert first == again != other


def test_an_epsilon_of_frozen_normalisation_is_taken_into_the_variance() -> None:
    teacher, model = (nn.Sequential(FrozenBatchNorm2d(3, eps=eps)) for eps in (0.0, 1e-5))
    teacher[0].running_var.copy_(torch.tensor([1.0, 0.01, 1e-4]))
    model.load_state_dict(_same_norms(teacher.state_dict(), teacher, model))
    picture = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(model(picture), teacher(picture), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("architecture", "stages"),
    [
        ("ssd300_vgg16", 4),
        ("ssdlite320_mobilenet_v3_large", 5),
        ("fasterrcnn_resnet50_fpn", 5),
        ("fasterrcnn_mobilenet_v3_large_fpn", 5),
    ],
)
def test_stages_are_frozen_from_the_picture_on(architecture: str, stages: int) -> None:
    start = StartConfig(weights="scratch", architecture=architecture, categories=(BACKGROUND, "cat"))
    with torch.device("meta"):
        model = build_student(start, None, 0).model
    assert len(backbone_stages(model)) == stages
    freeze_stages(model, 2)
    trains = [any(w.requires_grad for part in stage for w in part.parameters()) for stage in backbone_stages(model)]
    assert trains == [False, False] + [True] * (stages - 2)
    with pytest.raises(ModelError, match=rf"network\.frozen_stages {stages + 1}"):
        freeze_stages(model, stages + 1)


def test_an_unknown_architecture_is_refused() -> None:
    start = StartConfig(weights="scratch", architecture="yolo", categories=(BACKGROUND, "cat"))
    with pytest.raises(ModelError, match=r"start\.architecture: unknown 'yolo'"):
        build_student(start, None, 0)


@pytest.mark.parametrize("architecture", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_what_is_exported_loads_as_the_same_model(architecture: str, tmp_path: Path) -> None:
    start = StartConfig(weights="scratch", architecture=architecture, categories=(BACKGROUND, "cat"), score_floor=0.02)
    student = build_student(start, None, 3)
    student.model.transform.image_mean = [0.1, 0.2, 0.3]
    info = identify_model(student.model, "student", architecture, student.categories)
    for name, data in pack_model(student.model, info, {}).items():
        (tmp_path / name).write_bytes(data)
    loaded, info = load_model(ModelConfig(reference=str(tmp_path), score_floor=0.02), fetch_model(str(tmp_path), {}))
    assert info.categories == (BACKGROUND, "cat")
    for mine, theirs in zip(detections(student.model, architecture), detections(loaded, architecture), strict=True):
        assert torch.equal(mine, theirs)
