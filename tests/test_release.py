"""A model's way into a registry, through the gate and back, by the commands people give."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from batchdet.cli.main import main
from batchdet.demo.shapes import SHAPES
from batchdet.demo.shipped import shipped_model
from batchdet.engine.weights import read_weights
from tests.servers.s3 import Bucket
from tests.training.gold_sets import write_scenes

SHIPPED = shipped_model() / "1"
BARE = [
    "--set=model.architecture=ssdlite320_mobilenet_v3_large",
    f"--set=model.categories=[__background__, {', '.join(SHAPES)}]",
]
Models = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gold")
    write_scenes(folder, seed=813, count=8)
    return folder


@pytest.fixture
def models(capsys: pytest.CaptureFixture[str]) -> Models:
    """`batchdet models … --json`: exit code, its document, and the last line of stderr."""

    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        code = main(["models", *arguments, "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out or "{}"), captured.err.splitlines()[-1] if captured.err else ""

    return run


def dulled(folder: Path) -> Path:
    """The shipped weights, placing boxes badly."""
    weights = read_weights(SHIPPED / "model.safetensors")
    worse = {name: tensor * (0.6 if "regression_head" in name else 1) for name, tensor in weights.items()}
    worse = {name: tensor.to(weights[name].dtype) for name, tensor in worse.items()}
    torch.save(worse, folder / "dull.pth")
    return folder / "dull.pth"


def test_only_a_model_that_measures_no_worse_goes_live(models: Models, scenes: Path, tmp_path: Path) -> None:
    shapes = str(tmp_path / "registry" / "shapes")
    code, found, _ = models("import", shapes, "--model", str(dulled(tmp_path)), *BARE)
    assert (code, found) == (0, {"reference": f"file://{shapes}@1"})
    assert models("import", shapes, "--model", str(shipped_model()))[1] == {"reference": f"file://{shapes}@2"}
    code, found, _ = models("promote", f"{shapes}@1")
    assert (code, found["promoted"], found["instead_of"]) == (0, True, None)
    code, _, said = models("promote", f"{shapes}@2")
    assert code == 2
    assert said.endswith("version 1 is live; give --gold and --images to measure both, or --no-gate")
    gold = ["--gold", str(scenes / "gold.json"), "--images", str(scenes / "images"), "--output", str(tmp_path / "out")]
    alone = ["--ray", "off", "--set", "cluster.cpus_per_labeller=1"]
    code, found, _ = models("promote", f"{shapes}@2", *gold, *alone)
    assert (code, found["promoted"], found["instead_of"]) == (0, True, "1")
    assert found["candidate"]["map"] > found["live"]["map"]
    code, found, said = models("promote", f"{shapes}@1", *gold, *alone)
    assert (code, found["promoted"]) == (3, False)
    assert found["reasons"][0].startswith("mAP falls from ")
    assert said.startswith(f"error: file://{shapes}@1 is not promoted: mAP falls from ")
    code, found, _ = models("show", shapes)
    assert (found["live"], found["is_promoted"], found["reference"]) == ("2", True, f"file://{shapes}@2")
    assert [(entry["version"], entry["why"]) for entry in found["history"]] == [("1", "first"), ("2", "gate")]
    assert [entry["version"] for entry in found["refused"]] == ["1"]
    assert found["card"]["lineage"]["training_seed"] == 20_260, "what the card said goes along"
    code, found, _ = models("rollback", shapes)
    assert (code, found["reference"], found["instead_of"]) == (0, f"file://{shapes}@1", "2")
    assert models("promote", f"{shapes}@2", "--no-gate")[1]["promoted"]


def test_an_imported_checkpoint_labels_as_it_did(models: Models, tmp_path: Path, moto_bucket: Bucket) -> None:
    """A .pth becomes safetensors in a bucket, under the digest it had."""
    shapes = f"{moto_bucket.uri}/registry/shapes"
    torch.save({"model": read_weights(SHIPPED / "model.safetensors")}, tmp_path / "plain.pth")
    assert models("import", f"{shapes}@first", "--model", str(tmp_path / "plain.pth"), *BARE)[0] == 0
    assert sorted(moto_bucket.keys()) == [
        f"registry/shapes/first/{name}" for name in ("model.json", "model.safetensors")
    ]
    card = json.loads(moto_bucket.get("registry/shapes/first/model.json"))
    stored = safetensors.torch.load(moto_bucket.get("registry/shapes/first/model.safetensors"))
    assert stored.keys() == read_weights(SHIPPED / "model.safetensors").keys()
    assert card["categories"] == ["__background__", *SHAPES]
    code, _, said = models("import", f"{shapes}@first", "--model", str(tmp_path / "plain.pth"), *BARE)
    assert code == 2
    assert "version first is there already, and versions never change" in said
    assert models("promote", f"{shapes}@first")[0] == 0
    assert json.loads(moto_bucket.get("registry/shapes/promoted.json"))["version"] == "first"
    assert models("list", f"{moto_bucket.uri}/registry")[1][0]["is_promoted"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "{}"], "no version is live; name one as {}@VERSION"),
        (["show", "{}@9"], "no version '9' (there: 1)"),
        (["promote", "{}"], "promote {}: name the version, as {}@VERSION"),
        (["promote", "{}@9"], "no version '9' (there: 1)"),
        (["promote", "{}@1", "--gold", "x"], "give --gold and --images together"),
        (["promote", "{}@1", "--gold", "x", "--images", "y", "--no-gate"], "neither with --no-gate"),
        (["rollback", "{}"], "nothing was live before"),
        (["rollback", "{}@1"], "takes no version"),
        (["import", "{}", "--model", "{}/none.pth"], "none.pth"),
        (["import", "{}", "--model", "x", "--set", "policy.nms=x"], "only model.* and storage.source.* matter here"),
        (["import", "{}@a b", "--model", "{}@1"], "version 'a b': expected letters"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(models: Models, tmp_path: Path, arguments: list[str], says: str) -> None:
    shapes = tmp_path / "shapes"
    shutil.copytree(SHIPPED, shapes / "1")
    code, found, said = models(*[argument.replace("{}", str(shapes)) for argument in arguments])
    assert (code, found) == (2, {})
    assert says.replace("{}", str(shapes)) in said
