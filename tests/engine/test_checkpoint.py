"""Loading a detector: every form of file gives the same one, every mistake one line."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from batchdet.config import ModelConfig
from batchdet.engine import rcnn
from batchdet.engine.checkpoint import load_detector, load_model, read_input_spec
from batchdet.engine.families import FAMILIES
from batchdet.errors import ModelError
from batchdet.records import ModelFiles
from tests.engine.seeded import batch_of, pictures, seeded_model

SSDLITE = "ssdlite320_mobilenet_v3_large"
CATEGORIES = ("__background__", "cat", "dog", "hen", "cow")


@pytest.fixture(scope="module")
def stock() -> nn.Module:
    return seeded_model(SSDLITE)


def config(**changes: Any) -> ModelConfig:
    values = {
        "reference": "model.file",
        "architecture": SSDLITE,
        "categories": CATEGORIES,
        "backend": "torch",
    } | changes
    return ModelConfig.model_validate({name: value for name, value in values.items() if value is not None})


def saved(folder: Path, state: Any, name: str = "model.pth") -> ModelFiles:
    path = folder / name
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return ModelFiles(path, None)


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def in_hub_cache(monkeypatch: pytest.MonkeyPatch, folder: Path, url: str, state: Any) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(folder))
    path = folder / "hub" / "checkpoints" / url.rsplit("/", 1)[-1]
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return path


def same_layers(one: nn.Module, other: nn.Module) -> None:
    """Layer by layer the same types, epsilons and values."""
    for (name, mine), (other_name, theirs) in zip(one.named_modules(), other.named_modules(), strict=True):
        assert (name, type(mine)) == (other_name, type(theirs))
        assert getattr(mine, "eps", None) == getattr(theirs, "eps", None), name
    theirs = other.state_dict()
    mine = one.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# Forms of files.


def data_parallel(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("model.safetensors", dict),
        ("model.pth", dict),
        ("model.pt", lambda state: {"state_dict": state, "epoch": 3}),
        ("model.pth", lambda state: {"model": state, "optimizer": {"lr": 0.1}, "args": argparse.Namespace(lr=0.1)}),
        ("model.pth", data_parallel),
        ("model.pth", lambda state: {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}),
    ],
    ids=["safetensors", "pth", "state_dict", "training script", "data parallel", "without counters"],
)
def test_every_form_gives_the_same_detections_and_digest(
    stock: nn.Module, tmp_path: Path, name: str, wrap: Any
) -> None:
    plain = load_detector(config(), saved(tmp_path, stock.state_dict(), "plain.pth"), "cpu")
    detector = load_detector(config(), saved(tmp_path, wrap(stock.state_dict()), name), "cpu")
    assert detector.info.digest == plain.info.digest
    assert detector.info.categories == CATEGORIES
    images = pictures((120, 160))
    with torch.inference_mode():
        (expected,) = stock(images)
    found = detector.detect(batch_of(stock, images))
    above = expected["scores"] > 0.05
    assert found.labels.tolist() == expected["labels"][above].tolist()
    torch.testing.assert_close(found.scores, expected["scores"][above], rtol=0, atol=1e-5)


def test_half_precision_files_are_raised_to_float32(stock: nn.Module, tmp_path: Path) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in stock.state_dict().items()}
    module, info = load_model(config(), saved(tmp_path, half, "half.safetensors"))
    rounded = {n: t.float() if t.is_floating_point() else t for n, t in half.items()}
    _, again = load_model(config(), saved(tmp_path, rounded, "rounded.pth"))
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert info.digest == again.digest


def test_digest_tells_weights_categories_and_architecture_apart(stock: nn.Module, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in stock.state_dict().items()}
    files = saved(tmp_path, state)
    first = load_model(config(), files)[1].digest
    renamed = load_model(config(categories=(*CATEGORIES[:-1], "ox")), files)[1].digest
    next(iter(state.values())).flatten()[0] += 1
    moved = load_model(config(), saved(tmp_path, state))[1].digest
    assert len({first, renamed, moved}) == 3
    assert first.startswith("sha256:")
    assert len(first) == 71


def test_digest_tells_input_sizes_and_normalisations_apart(stock: nn.Module, tmp_path: Path) -> None:
    """The same weights behind other cards are other models: their rows differ."""
    default = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    cards: list[dict[str, Any]] = [
        {},
        {"normalisation": default | {"mean": [0.485, 0.456, 0.406]}},
        {"normalisation": default | {"std": [0.229, 0.224, 0.225]}},
        {"input_size": {"height": 256, "width": 320}},
    ]
    digests = [load_model(config(), registry(tmp_path, stock.state_dict(), **card))[1].digest for card in cards]
    assert len(set(digests)) == len(cards)
    bare = load_model(config(), saved(tmp_path, stock.state_dict()))[1].digest
    said = {"normalisation": default, "input_size": {"height": 320, "width": 320}}
    assert load_model(config(), registry(tmp_path, stock.state_dict(), **said))[1].digest == digests[0] == bare


def test_digest_tells_the_epsilon_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torchvision runs these weights without an epsilon by their name; anyone else's get the usual one."""
    architecture = "fasterrcnn_resnet50_fpn"
    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    full = torchvision.models.get_model(architecture, weights=None, weights_backbone=None, num_classes=91).state_dict()
    state = {name: tensor for name, tensor in full.items() if not name.endswith("num_batches_tracked")}
    in_hub_cache(monkeypatch, tmp_path, weights.url, state)
    without = load_model(ModelConfig(reference=f"torchvision:{architecture}"), None)[1]
    monkeypatch.setattr(rcnn, "NORM_EPSILONS", {})
    usual = load_model(ModelConfig(reference=f"torchvision:{architecture}"), None)[1]
    assert without.digest != usual.digest


def test_digest_does_not_know_the_training_counters(tmp_path: Path) -> None:
    """With them a normalisation is of another type, which computes the same."""
    architecture = "fasterrcnn_mobilenet_v3_large_320_fpn"
    full = torchvision.models.get_model(architecture, weights=None, weights_backbone=None, num_classes=5).state_dict()
    state = {name: tensor for name, tensor in full.items() if not name.endswith("num_batches_tracked")}
    job = config(architecture=architecture)
    forms = [saved(tmp_path, full), saved(tmp_path, state, "bare.pth"), saved(tmp_path, state, "bare.safetensors")]
    assert len({load_model(job, files)[1].digest for files in forms}) == 1


def test_wide_tail_of_a_pretrained_backbone_is_recognised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backbone = torchvision.models.MobileNet_V3_Large_Weights.IMAGENET1K_V1
    in_hub_cache(monkeypatch, tmp_path, backbone.url, torchvision.models.mobilenet_v3_large().state_dict())
    wide = torchvision.models.get_model(SSDLITE, weights=None, weights_backbone=backbone, num_classes=5).eval()
    module, _ = load_model(config(), saved(tmp_path, wide.state_dict()))
    same_layers(module, wide)


# Registry folders.


def registry(folder: Path, state: dict[str, Tensor], **card: Any) -> ModelFiles:
    files = saved(folder, state, "model.safetensors")
    (folder / "model.json").write_text(json.dumps(card))
    return ModelFiles(files.weights, folder / "model.json")


def test_card_names_architecture_categories_size_and_normalisation(stock: nn.Module, tmp_path: Path) -> None:
    files = registry(
        tmp_path,
        stock.state_dict(),
        architecture=SSDLITE,
        categories=CATEGORIES,
        input_size={"height": 256, "width": 384},
        normalisation={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    )
    digest = "sha256:" + hashlib.sha256(files.weights.read_bytes()).hexdigest()
    assert files.card is not None
    card = json.loads(files.card.read_text()) | {"digests": {"model.safetensors": digest}}
    files.card.write_text(json.dumps(card))
    info = load_detector(config(architecture=None, categories=None), files, "cpu").info
    assert (info.architecture, info.categories) == (SSDLITE, CATEGORIES)
    assert info.input_spec.fixed_size == (256, 384)
    assert (info.input_spec.mean, info.input_spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"digests": {"model.safetensors": "sha256:00"}}, ["not the file its model card describes", "sha256:00"]),
        ({"input_size": {"height": "tall", "width": 3}}, ["input_size"]),
        ({"normalisation": {"mean": [1.0]}}, ["normalisation"]),
        ({"architecture": None}, ["model.architecture", SSDLITE]),
        ({"architecture": ["ssd"]}, ["architecture of its model.json must be a name"]),
        ({"categories": {"0": "cat"}}, ["categories of its model.json must be a list"]),
        ({"categories": ["__background__", None]}, ["categories of its model.json must be names"]),
        ({"input_size": [320, 320]}, ["input_size of its model.json must be an object"]),
        ({"input_size": {"side": 320}}, ["input_size must be {height, width} or {min_size, max_size}"]),
        ({"digests": "sha256:00"}, ["digests of its model.json must be an object"]),
        ({"lineage": [1]}, ["lineage of its model.json must be an object"]),
    ],
)
def test_wrong_card_is_refused(stock: nn.Module, tmp_path: Path, card: dict[str, Any], words: list[str]) -> None:
    whole = {"architecture": SSDLITE, "categories": CATEGORIES} | card
    files = registry(tmp_path, stock.state_dict(), **whole)
    with pytest.raises(ModelError) as error:
        load_detector(config(architecture=None, categories=None), files, "cpu")
    assert all(word in one_line(error) for word in words)


def test_a_null_of_a_card_says_nothing(stock: nn.Module, tmp_path: Path) -> None:
    said = {"architecture": SSDLITE, "categories": CATEGORIES}
    nulls = dict.fromkeys(("input_size", "normalisation", "digests", "metrics", "frozen_norm_epsilon"))
    digests = set()
    for card in (said, said | nulls):
        files = registry(tmp_path, stock.state_dict(), **card)
        digests.add(load_detector(config(architecture=None, categories=None), files, "cpu").info.digest)
    assert len(digests) == 1


def test_card_that_is_not_json_is_refused(stock: nn.Module, tmp_path: Path) -> None:
    files = registry(tmp_path, stock.state_dict())
    assert files.card is not None
    for text in ("{", "[1]"):
        files.card.write_text(text)
        with pytest.raises(ModelError, match="not a model card"):
            load_detector(config(), files, "cpu")


# torchvision's own weights.


@pytest.mark.parametrize("architecture", [SSDLITE, "fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn"])
def test_torchvision_weights_give_the_layers_of_its_builder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, architecture: str
) -> None:
    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    plain = torchvision.models.get_model(architecture, weights=None, weights_backbone=None, num_classes=91)
    tracked = {} if architecture == SSDLITE else {n for n in plain.state_dict() if n.endswith("num_batches_tracked")}
    state = {name: tensor for name, tensor in plain.state_dict().items() if name not in tracked}
    in_hub_cache(monkeypatch, tmp_path, weights.url, state)
    expected = torchvision.models.get_model(architecture, weights=weights).eval()
    module, info = load_model(ModelConfig(reference=f"torchvision:{architecture}"), None)
    same_layers(module, expected)
    assert info.categories == tuple(weights.meta["categories"])
    _, named = load_model(ModelConfig(reference=f"torchvision:{architecture}@{weights.name}"), None)
    assert named.digest == info.digest


def test_pickle_in_the_hub_cache_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = torchvision.models.get_model_weights(SSDLITE).DEFAULT
    path = in_hub_cache(monkeypatch, tmp_path, weights.url, nn.Linear(2, 2))
    with pytest.raises(ModelError, match="damaged; delete it") as error:
        load_detector(ModelConfig(reference=f"torchvision:{SSDLITE}"), None, "cpu")
    assert str(path) in one_line(error)


def test_download_without_network_says_where_the_file_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="cannot be downloaded") as error:
        load_detector(ModelConfig(reference=f"torchvision:{SSDLITE}"), None, "cpu")
    assert "checkpoints" in one_line(error)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("torchvision:ssd301", ["ssd301", "ssd300_vgg16", "fasterrcnn_resnet50_fpn_v2"]),
        ("torchvision:ssd300_vgg16@COCO_V9", ["COCO_V9", "COCO_V1"]),
        ("torchvision:", ["known:"]),
    ],
)
def test_unknown_torchvision_names_list_the_known(reference: str, words: list[str]) -> None:
    with pytest.raises(ModelError) as error:
        load_detector(ModelConfig(reference=reference), None, "cpu")
    assert all(word in one_line(error) for word in words)


# Mistakes in a bare file.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": None}, ["model.architecture", SSDLITE]),
        ({"architecture": "yolo"}, ["'yolo'", SSDLITE]),
        ({"categories": None}, ["model.categories", "__background__"]),
        ({"categories": ("cat", "dog", "hen", "cow", "ox")}, ["__background__", "'cat'"]),
        ({"categories": ("__background__", "cat", "cat", "dog", "dog")}, ["twice", "cat, dog"]),
        ({"categories": ("__background__", "cat", "dog")}, ["5 classes", "names 3"]),
        ({"architecture": "fasterrcnn_resnet50_fpn"}, ["no heads of fasterrcnn_resnet50_fpn"]),
        ({"architecture": "ssd300_vgg16"}, ["ssd300_vgg16"]),
    ],
)
def test_config_that_does_not_fit_is_refused(
    stock: nn.Module, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    files = saved(tmp_path, stock.state_dict())
    with pytest.raises(ModelError) as error:
        load_detector(config(**changes), files, "cpu")
    assert all(word in one_line(error) for word in words)


def test_missing_and_unexpected_tensors_are_named(stock: nn.Module, tmp_path: Path) -> None:
    state = stock.state_dict()
    with pytest.raises(ModelError, match=r"1 unexpected tensors, e\.g\. extra\.weight"):
        load_detector(config(), saved(tmp_path, state | {"extra.weight": torch.zeros(1)}), "cpu")
    name = "backbone.extra.3.2.0.weight"
    with pytest.raises(ModelError, match=f"1 missing tensors, e.g. {name}"):
        load_detector(config(), saved(tmp_path, {n: t for n, t in state.items() if n != name}), "cpu")
    with pytest.raises(ModelError, match="size mismatch") as error:
        load_detector(config(), saved(tmp_path, state | {name: torch.zeros(1)}), "cpu")
    one_line(error)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300], ids=["nan", "inf", "over float32"])
def test_weights_that_are_not_finite_are_refused(stock: nn.Module, tmp_path: Path, bad: float) -> None:
    name = "backbone.extra.3.2.0.weight"
    broken = stock.state_dict()[name].double()
    broken.flatten()[7] = bad
    with pytest.raises(ModelError, match=f"1 of {broken.numel()} numbers in {name} are not finite") as error:
        load_detector(config(), saved(tmp_path, stock.state_dict() | {name: broken}), "cpu")
    one_line(error)


class Sprung(nn.Module):
    """A pickle that raises when it is run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('the pickle was run')",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["damaged"]),
        (b"<html>404</html>", ["damaged"]),
        (bytes(range(256)) * 4, ["damaged"]),
        (Sprung(), ["not plain tensors", "exec", "weights_only=False"]),
        (nn.Linear(2, 2), ["not plain tensors", "torch.nn.modules.linear.Linear"]),
        ([torch.zeros(2)], ["no state dict"]),
        ({}, ["no state dict"]),
        ({"weights": 3}, ["no state dict"]),
        (None, ["No such file"]),
    ],
    ids=["empty", "html", "noise", "code", "module", "list", "nothing", "numbers", "absent"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path, content: Any, words: list[str], suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ModelError) as error:
        load_detector(config(), ModelFiles(path, None), "cpu")
    message = one_line(error)
    assert str(path) in message
    if suffix == ".pth":
        assert all(word in message for word in words)


@pytest.mark.parametrize("keep", [0.2, 0.9])
def test_truncated_checkpoints_are_refused(stock: nn.Module, tmp_path: Path, keep: float) -> None:
    for name in ("model.pth", "model.safetensors"):
        files = saved(tmp_path, stock.state_dict(), name)
        data = files.weights.read_bytes()
        files.weights.write_bytes(data[: int(len(data) * keep)])
        with pytest.raises(ModelError, match="damaged") as error:
            load_detector(config(), files, "cpu")
        one_line(error)


# The detector.


@pytest.mark.parametrize("architecture", FAMILIES)
def test_input_spec_is_the_models_own(architecture: str) -> None:
    model = torchvision.models.get_model(architecture, weights=None, weights_backbone=None, num_classes=2)
    spec = read_input_spec(model)
    sizes = {"ssd300_vgg16": (300, 300), SSDLITE: (320, 320)}
    assert spec.fixed_size == sizes.get(architecture)
    if architecture not in sizes:
        mobile = "320" in architecture
        assert (spec.min_size, spec.max_size, spec.size_divisible) == ((320, 640, 32) if mobile else (800, 1333, 32))


def test_score_floor_is_pushed_into_the_model(stock: nn.Module, tmp_path: Path) -> None:
    files, batch = saved(tmp_path, stock.state_dict()), batch_of(stock, pictures((120, 160)))
    low = load_detector(config(score_floor=0.7), files, "cpu").detect(batch)
    high = load_detector(config(score_floor=0.9), files, "cpu").detect(batch)
    assert 0.7 < float(low.scores.min()) < 0.9 < float(high.scores.min())


@pytest.mark.parametrize("precision", ["bf16"])
def test_lower_precision_still_gives_float32_rows(stock: nn.Module, tmp_path: Path, precision: str) -> None:
    detector = load_detector(config(precision=precision), saved(tmp_path, stock.state_dict()), "cpu")
    found = detector.detect(batch_of(stock, pictures((120, 160))))
    assert (found.boxes.dtype, found.scores.dtype) == (torch.float32, torch.float32)
    assert len(found) > 0
