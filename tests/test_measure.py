"""A measurement from images and gold labels to figures, through the same runs as `label`."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import safetensors.torch

from batchdet.cli.main import main
from batchdet.config import EXACT_SETTINGS, JobConfig
from batchdet.demo.shapes import SHAPES
from batchdet.demo.shipped import shipped_model
from batchdet.engine.weights import read_weights
from tests.servers.s3 import Bucket
from tests.training.gold_sets import assert_is_oracle, oracle, write_scenes

MODEL = str(shipped_model())
Measure = Callable[..., tuple[dict[str, Any], str]]


NUM_SCENES = 12
ALONE = ["--ray", "off", "--set", "cluster.cpus_per_labeller=1"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gold")
    write_scenes(folder, seed=812, count=NUM_SCENES)
    return folder


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output for all: what one test had labelled, another reads back."""
    return tmp_path_factory.mktemp("labels")


@pytest.fixture
def measure(scenes: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> Measure:
    """The command on the scenes: its JSON, and what it said meanwhile."""

    def run(*arguments: str, gold: Path = scenes / "gold.json", images: Path = scenes / "images") -> Any:
        given = ["--model", MODEL, "--gold", str(gold), "--images", str(images), "--output", str(labels)]
        code = main(["evaluate", "--json", *ALONE, *given, *arguments])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out), captured.err

    return run


def rows_of(labels: str, tree: dict[str, Any], categories: Sequence[str]) -> list[dict[str, Any]]:
    """What Parquet holds as pycocotools takes it, read without anything of ours."""
    ids = {image["file_name"]: image["id"] for image in tree["images"]}
    numbers = {category["name"]: category["id"] for category in tree["categories"]}
    found = []
    for path in sorted(Path(labels.removeprefix("file://")).glob("detections/*/*.parquet")):
        for row in pq.ParquetFile(path).read().to_pylist():
            box = [row["xmin"], row["ymin"], row["xmax"] - row["xmin"], row["ymax"] - row["ymin"]]
            name = row["image_uri"].rpartition("/")[2]
            if categories[row["label"]] in numbers and name in ids:
                number = numbers[categories[row["label"]]]
                found.append({"image_id": ids[name], "category_id": number, "bbox": box, "score": row["score"]})
    return found


def test_the_figures_are_those_of_pycocotools_on_the_committed_rows(
    measure: Measure, scenes: Path, tmp_path: Path
) -> None:
    score, said = measure("--output", str(tmp_path / "kept"))
    tree = json.loads((scenes / "gold.json").read_text())
    rows = rows_of(score["labels"], tree, ["", *SHAPES])
    assert min(row["score"] for row in rows) < 0.02, "every candidate counts, not only the accepted"
    assert_is_oracle(score, oracle(tree, rows))
    assert 0.6 < score["map"] < score["map_50"] <= 1
    assert (score["num_images"], score["missing_images"], score["failed_images"]) == (NUM_SCENES, [], [])
    assert (score["cost"], score["unknown_categories"], score["unmeasured_categories"]) == (None, [], [])
    assert f"{NUM_SCENES} to label" in said
    again, said = measure("--output", str(tmp_path / "kept"))
    assert again == score
    assert "0 to label" in said, "what was labelled is read back"


def test_real_photographs(measure: Measure, data_folder: Path, tmp_path: Path) -> None:
    """The demo's model knows no blood cells; under other names its figures are low and still pycocotools'."""
    folder = data_folder / "bccd"
    tree = json.loads((folder / "annotations.json").read_text())
    test = set(json.loads((folder / "splits.json").read_text())["test"][:40])
    tree["images"] = [image for image in tree["images"] if image["file_name"] in test]
    chosen = {image["id"] for image in tree["images"]}
    tree["annotations"] = [annotation for annotation in tree["annotations"] if annotation["image_id"] in chosen]
    (tmp_path / "gold.json").write_text(json.dumps(tree))
    names = ["__background__", "RBC", "box", "triangle", "WBC", "Platelets", "cross"]
    settings = ["--set", f"model.categories=[{', '.join(names)}]"]
    score, said = measure(*settings, gold=tmp_path / "gold.json", images=folder / "images")
    assert score["map"] > 0
    assert_is_oracle(score, oracle(tree, rows_of(score["labels"], tree, names)))
    assert (score["num_images"], score["unmeasured_categories"]) == (40, ["box", "triangle", "cross"])
    assert "categories of the model are not in the gold set and not measured: box, triangle, cross\n" in said


def test_what_cannot_be_measured_is_left_out_and_named(measure: Measure, scenes: Path, tmp_path: Path) -> None:
    tree = json.loads((scenes / "gold.json").read_text())
    images, objects = tree["images"], tree["annotations"]
    broken = images[3]["file_name"]
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for image in images[:9]:
        name = image["file_name"]
        (folder / "deeper" / name).write_bytes(b"" if name == broken else (scenes / "images" / name).read_bytes())
    (folder / "not gold.jpg").write_bytes(b"never read")
    tree["categories"].append({"id": 99, "name": "snark"})
    objects.append({**objects[0], "id": 999_999, "category_id": 99})
    (tmp_path / "gold.json").write_text(json.dumps(tree))
    score, said = measure("--set", "limits.max_failure_rate=0.5", gold=tmp_path / "gold.json", images=folder)
    kept = [image["id"] for image in images[:9] if image["file_name"] != broken]
    assert score["num_images"] == 8
    assert score["missing_images"] == [image["file_name"] for image in images[9:]]
    assert score["failed_images"] == [broken]
    assert score["unknown_categories"] == ["snark"]
    assert f"{NUM_SCENES - 9} of {NUM_SCENES} gold images are not there and left out" in said
    assert "of the gold set are unknown to the model and not measured: snark\n" in said
    known = {**tree, "categories": tree["categories"][:-1], "annotations": objects[:-1]}
    assert_is_oracle(score, oracle(known, rows_of(score["labels"], known, ["", *SHAPES]), kept))


def test_boxes_without_area_are_left_out_and_crowds_are_neither_right_nor_wrong(
    measure: Measure, scenes: Path, tmp_path: Path
) -> None:
    tree = json.loads((scenes / "gold.json").read_text())
    for place, row in enumerate(tree["annotations"]):
        row["iscrowd"] = int(place % 7 == 0)
    void = [{**tree["annotations"][place], "id": 9000 + place, "bbox": [5, 5, place, 0]} for place in range(3)]
    (tmp_path / "gold.json").write_text(json.dumps({**tree, "annotations": [*void, *tree["annotations"]]}))
    score, said = measure(gold=tmp_path / "gold.json")
    assert_is_oracle(score, oracle(tree, rows_of(score["labels"], tree, ["", *SHAPES])))
    assert score["num_objects"] == sum(not row["iscrowd"] for row in tree["annotations"])
    assert "3 gold boxes without area are left out\n" in said


NO_OBJECTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "none": lambda tree: {"annotations": []},
    "void": lambda tree: {"annotations": [{**row, "bbox": [1, 1, 0, 5]} for row in tree["annotations"]]},
    "crowds": lambda tree: {"annotations": [{**row, "iscrowd": 1} for row in tree["annotations"]]},
    "unknown": lambda tree: {
        "categories": [*tree["categories"], {"id": 99, "name": "snark"}],
        "annotations": [{**row, "category_id": 99} for row in tree["annotations"]],
    },
}


@pytest.mark.parametrize("command", ["evaluate", "calibrate"])
@pytest.mark.parametrize("change", NO_OBJECTS.values(), ids=NO_OBJECTS)
def test_gold_without_an_object_is_refused_before_any_work(
    command: str,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = json.loads((scenes / "gold.json").read_text())
    (tmp_path / "gold.json").write_text(json.dumps(tree | change(tree)))
    given = ["--model", MODEL, "--gold", str(tmp_path / "gold.json"), "--images", str(scenes / "images")]
    given += ["--output", str(tmp_path / "labels")]
    more = ["--precision", "0.9", "--to", str(tmp_path / "policy.yaml")] if command == "calibrate" else []
    assert main([command, *ALONE, *given, *more]) == 2
    assert "gold.json: holds no object in these images" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("labels/**/*.parquet"))


def test_images_of_another_size_than_stated_are_said(measure: Measure, scenes: Path, tmp_path: Path) -> None:
    tree = json.loads((scenes / "gold.json").read_text())
    for image in tree["images"][:2]:
        image["width"], image["height"] = 7, 9
    (tmp_path / "gold.json").write_text(json.dumps(tree))
    _, said = measure(gold=tmp_path / "gold.json")
    assert f"2 images are not of the size that the gold set states, such as {tree['images'][0]['file_name']}" in said


def test_the_cost_of_a_setting_is_measured_beside_it(
    measure: Measure, labels: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact, _ = measure()
    half, said = measure("--set", "model.precision=bf16")
    cost = half["cost"]
    assert cost["settings"] == {"model.precision": "bf16"}
    assert cost["exact"]["map"] == exact["map"]
    assert cost["map_difference"] == pytest.approx(half["map"] - exact["map"])
    tree = json.loads((scenes / "gold.json").read_text())
    scores = [[row["score"] for row in rows_of(part["labels"], tree, ["", *SHAPES])] for part in (exact, half)]
    assert scores[0] != scores[1], "another arithmetic was measured"
    assert 0 <= cost["images_with_other_labels"] < NUM_SCENES
    assert said.count(f" {NUM_SCENES} to label") == 1, "the exact labels were there already"
    given = [
        "--gold",
        str(scenes / "gold.json"),
        "--images",
        str(scenes / "images"),
        "--output",
        str(labels),
    ]
    assert main(["evaluate", "--model", MODEL, *ALONE, "--set", "model.precision=bf16", *given]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"model.precision bf16: mAP {half['map']:.3f} against {exact['map']:.3f} exact: ")
    assert line.endswith(f"{cost['images_with_other_labels']} of {NUM_SCENES} images have another list of labels")


def test_every_exact_setting_is_the_default_of_its_field() -> None:
    tree = JobConfig.model_validate({"source": "a", "output": "b", "model": {"reference": "c"}}).model_dump()
    for field, value in EXACT_SETTINGS.items():
        section, _, name = field.partition(".")
        assert tree[section][name] == value, field


def test_another_model_is_not_read_back_from_the_same_folder(measure: Measure, tmp_path: Path) -> None:
    first, _ = measure()
    weights = read_weights(Path(MODEL) / "1" / "model.safetensors")
    name = next(name for name in weights if name.endswith("weight"))
    safetensors.torch.save_file({**weights, name: weights[name] * 1.01}, tmp_path / "other.safetensors")
    settings = [
        "--model",
        str(tmp_path / "other.safetensors"),
        "--set=model.architecture=ssdlite320_mobilenet_v3_large",
        f"--set=model.categories=[__background__, {', '.join(SHAPES)}]",
    ]
    second, said = measure(*settings)
    assert f"{NUM_SCENES} to label" in said
    assert second["model_digest"] != first["model_digest"]
    assert second["labels"] != first["labels"]


def test_everything_may_lie_in_a_bucket(
    measure: Measure, scenes: Path, moto_bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in scenes.glob("images/*"):
        moto_bucket.put(f"photos/{path.name}", path.read_bytes())
    moto_bucket.put("gold.json", (scenes / "gold.json").read_bytes())
    uri = moto_bucket.uri
    given = ["--gold", f"{uri}/gold.json", "--images", f"{uri}/photos/", "--output", f"{uri}/labels"]
    assert main(["evaluate", "--model", MODEL, *ALONE, "--json", *given, "--to", f"{uri}/to"]) == 0
    there, here = json.loads(capsys.readouterr().out), measure()[0]
    assert there["map"] == here["map"]
    assert there["labels"].startswith(f"{uri}/labels/")
    assert moto_bucket.keys("to/") == ["to/confusion.csv", "to/precision_recall.png"]


@pytest.mark.parametrize(
    ("library", "arguments", "says"),
    [
        ("pycocotools", [], "needs pycocotools: pip install 'batchdet[evaluate]'"),
        ("matplotlib", ["--to", "{}"], "--to draws with matplotlib: pip install 'batchdet[evaluate]'"),
    ],
)
def test_a_library_that_is_not_there_is_named(
    library: str,
    arguments: list[str],
    says: str,
    scenes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    given = ["--model", MODEL, "--gold", str(scenes / "gold.json"), "--images", str(scenes / "images")]
    assert main(["evaluate", *ALONE, *given, *(part.replace("{}", str(scenes)) for part in arguments)]) == 2
    assert says in capsys.readouterr().err


def test_the_plot_and_the_table_are_written(measure: Measure, tmp_path: Path) -> None:
    measure("--to", str(tmp_path / "to"))
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["confusion.csv", "precision_recall.png"]
    assert (tmp_path / "to" / "confusion.csv").read_text().splitlines()[0].endswith(",cross,(nothing)")


def test_people_get_tables(scenes: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--gold", str(scenes / "gold.json"), "--images", str(scenes / "images"), "--output", str(labels)]
    assert main(["evaluate", "--model", MODEL, *ALONE, *given]) == 0
    shown = capsys.readouterr().out
    assert "\nmAP\t0." in shown
    assert "\nstar\t" in shown


def test_a_model_that_finds_nothing_is_measured(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--gold", str(scenes / "gold.json"), "--images", str(scenes / "images")]
    nothing = ["--set", "model.score_floor=0.999999", "--set", "policy.score_threshold=1"]
    assert main(["evaluate", "--model", MODEL, *ALONE, *given, *nothing, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["map"], found["ar_100"], found["labels"]) == (0.0, 0.0, None)


def test_label_accepts_what_calibrate_found(
    scenes: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = ["--gold", str(scenes / "gold.json"), "--images", str(scenes / "images"), "--output", str(labels)]
    policy = tmp_path / "policy.yaml"
    wanted = ["--precision", "0.8", "--min-objects", "7", "--to", str(policy)]
    assert main(["calibrate", "--model", MODEL, *ALONE, "--json", *gold, *wanted]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["per_category"]) == set(SHAPES)
    assert {part["outcome"] for part in found["per_category"].values()} == {"calibrated", "too_few_objects"}
    assert min(part["score_threshold"] for part in found["per_category"].values()) < 0.5, "under the default policy's"
    job = ["--source", str(scenes / "images"), "--output", str(tmp_path / "out"), "--model", MODEL]
    assert main(["label", *job, "--policy", str(policy), *ALONE, "--json"]) == 0
    assert json.loads(json.loads(capsys.readouterr().out)["policy"]) == found["policy"]
    assert (
        main(
            ["query", str(tmp_path / "out"), "SELECT category, count(*) n FROM current_detections GROUP BY 1", "--json"]
        )
        == 0
    )
    accepted = {row["category"]: row["n"] for row in json.loads(capsys.readouterr().out)}
    assert accepted == {name: part["num_accepted"] for name, part in found["per_category"].items()}
    assert main(["calibrate", "--model", MODEL, *ALONE, *gold, *wanted]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("category\tthreshold\tprecision\t95% interval")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--precision", "2", "--to", "{}/p.yaml"], "'--precision': Input should be less than or equal to 1"),
        (
            ["--precision", "0.9", "--to", "{}/none/p.yaml"],
            "--to {}/none/p.yaml: name a file in a folder that is there",
        ),
        (["--precision", "0.9"], "Missing option '--to'"),
    ],
)
def test_a_calibration_that_cannot_be_is_one_line(
    scenes: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    given = ["--model", MODEL, "--gold", str(scenes / "gold.json"), "--images", str(scenes / "images")]
    changed = [argument.replace("{}", str(scenes)) for argument in arguments]
    assert main(["calibrate", *ALONE, *given, *changed]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert says.replace("{}", str(scenes)) in captured.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gold", "{}/none.json"], "none.json: not found; name a COCO json file"),
        (["--images", "{}/none"], "source {}/none"),
        (["--model", "torchvision:nope"], "nope"),
        (["--set", "model.frob=1"], "model.frob: unknown field"),
        (["--set", "model.categories=[__background__, a, b, c, d, e, f]"], "none of its categories is the model's"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    scenes: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    given = ["--model", MODEL, "--gold", str(scenes / "gold.json"), "--images", str(scenes / "images")]
    changed = [argument.replace("{}", str(scenes)) for argument in arguments]
    assert main(["evaluate", *ALONE, *given, *changed]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says.replace("{}", str(scenes)) in captured.err.splitlines()[-1]
