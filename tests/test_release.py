"""A model's way into a registry, through the gate and back, by the commands people give."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
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
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import ROOT, Bucket
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
    code, found, _ = models("promote", f"{shapes}@2", *gold, *ALONE)
    assert (code, found["promoted"], found["instead_of"]) == (0, True, "1")
    assert found["candidate"]["map"] > found["live"]["map"]
    code, found, said = models("promote", f"{shapes}@1", *gold, *ALONE)
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


ALONE = ["--ray", "off", "--set", "cluster.cpus_per_labeller=1"]


def put_version(bucket: Bucket, version: str, **changes: object) -> None:
    """The shipped model as a version of registry/shapes, its card changed."""
    card = json.loads((SHIPPED / "model.json").read_text()) | changes
    bucket.put(f"registry/shapes/{version}/model.safetensors", (SHIPPED / "model.safetensors").read_bytes())
    bucket.put(f"registry/shapes/{version}/model.json", json.dumps(card).encode())


def test_in_a_bucket_a_gate_that_fails_keeps_its_reason(
    models: Models, scenes: Path, tmp_path: Path, moto_bucket: Bucket
) -> None:
    """And a version that the gold set cannot measure is not put aside by it."""
    shapes = f"{moto_bucket.uri}/registry/shapes"
    for path in scenes.glob("images/*"):
        moto_bucket.put(f"gold/{path.name}", path.read_bytes())
    moto_bucket.put("gold.json", (scenes / "gold.json").read_bytes())
    gold = ["--gold", f"{moto_bucket.uri}/gold.json", "--images", f"{moto_bucket.uri}/gold/", *ALONE]
    put_version(moto_bucket, "1")
    put_version(moto_bucket, "3", categories=["__background__", "a", "b", "c", "d", "e", "f"])
    assert models("promote", f"{shapes}@1", *gold)[0] == 0, "the first has no rival"
    assert models("import", f"{shapes}@2", "--model", str(dulled(tmp_path)), *BARE)[0] == 0
    code, found, said = models("promote", f"{shapes}@2", *gold)
    assert (code, found["promoted"], found["instead_of"]) == (3, False, "1")
    assert said == f"error: {shapes}@2 is not promoted: {'; '.join(found['reasons'])}"
    kept = json.loads(moto_bucket.get("registry/shapes/promoted.json"))
    assert (kept["version"], kept["refused"][0]["version"]) == ("1", "2")
    assert kept["refused"][0]["reasons"] == found["reasons"]
    assert kept["refused"][0]["map"] == found["candidate"]["map"]
    assert models("promote", f"{shapes}@3", "--no-gate")[0] == 0
    code, found, said = models("promote", f"{shapes}@1", *gold)
    assert (code, found["promoted"], found["live"]) == (3, False, None)
    assert "version 3, which is live, knows no category of" in said
    assert json.loads(moto_bucket.get("registry/shapes/promoted.json"))["version"] == "3"


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"architecture": 5}', b"\xff", b""])
def test_a_damaged_card_is_one_line_that_names_it(models: Models, moto_bucket: Bucket, data: bytes) -> None:
    shapes = f"{moto_bucket.uri}/registry/shapes"
    put_version(moto_bucket, "1")
    assert models("promote", f"{shapes}@1")[0] == 0
    put_version(moto_bucket, "2")
    moto_bucket.put("registry/shapes/2/model.json", data)
    asked = [["list", f"{moto_bucket.uri}/registry"], ["import", f"{shapes}-copy", "--model", f"{shapes}@2"]]
    if not data.startswith(b'{"'):
        asked += [["show", f"{shapes}@2"], ["promote", f"{shapes}@2", "--no-gate"]]
    for arguments in asked:
        code, found, said = models(*arguments)
        assert (code, found) == (2, {}), arguments
        assert said.startswith("error: ") and "model.json" in said, arguments
        assert f"{shapes}/2/model.json" in said or f"{shapes}@2" in said, arguments
    assert models("show", shapes)[1]["live"] == "1"


def batchdet(bucket: Bucket, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "batchdet", "models", *arguments, "--json"],
        cwd=ROOT,
        env=os.environ | bucket.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_two_who_promote_at_once_one_is_told(models: Models, faulty_bucket: Bucket, faults: FaultProxy) -> None:
    shapes = f"{faulty_bucket.uri}/registry/shapes"
    for version in ("1", "2", "3"):
        put_version(faulty_bucket, version)
    assert models("promote", f"{shapes}@1")[0] == 0
    faults.add(Fault("promoted.json", "gather", method="PUT", count=2))
    both = {version: batchdet(faulty_bucket, "promote", f"{shapes}@{version}", "--no-gate") for version in ("2", "3")}
    said = {version: process.communicate(timeout=120)[1] for version, process in both.items()}
    codes = {version: process.returncode for version, process in both.items()}
    assert sorted(codes.values()) == [0, 2], said
    (winner,) = [version for version, code in codes.items() if code == 0]
    (loser,) = set(codes) - {winner}
    assert "another version was promoted meanwhile; look at it and try again" in said[loser]
    code, found, _ = models("show", shapes)
    assert (code, found["live"]) == (0, winner)
    assert [entry["version"] for entry in found["history"]] == ["1", winner]


def test_a_killed_import_is_no_version_and_hinders_none(
    models: Models, faulty_bucket: Bucket, faults: FaultProxy
) -> None:
    """Killed between the weights and the card."""
    shapes = f"{faulty_bucket.uri}/registry/shapes"
    hanging = faults.add(Fault("model.json", "hang", method="PUT"))
    killed = batchdet(faulty_bucket, "import", f"{shapes}", "--model", str(shipped_model()))
    give_up = time.monotonic() + 120
    while not hanging.seen:
        assert killed.poll() is None and time.monotonic() < give_up, killed.communicate()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    faults.clear()
    assert faulty_bucket.keys() == ["registry/shapes/1/model.safetensors"]
    assert "no models here" in models("list", f"{faulty_bucket.uri}/registry")[2]
    assert "no version '1'" in models("promote", f"{shapes}@1")[2]
    assert models("import", f"{shapes}@1", "--model", str(shipped_model()))[1] == {"reference": f"{shapes}@1"}
    assert models("promote", f"{shapes}@1")[0] == 0


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
