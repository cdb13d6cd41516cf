"""A whole retraining in one process: settled once, gone on with wherever it stopped, measured, gated, released."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from batchdet.cli.main import main
from batchdet.cli.retrain import retrained_document
from batchdet.config import ModelConfig, canonical_json
from batchdet.demo.shipped import shipped_model
from batchdet.errors import ConfigError, FailureRateError
from batchdet.labelling import Hardware, InlineRunner
from batchdet.release import import_version, promote_unmeasured
from batchdet.retraining import InlinePlace, Retrained, retrain
from batchdet.storage.filesystem import open_store
from batchdet.storage.promotion import read_promotions
from batchdet.storage.versions import list_versions, read_card
from batchdet.teaching import Post, teach
from batchdet.training.job import RetrainConfig, load_retrain
from batchdet.training.plan import TrainPlan, read_plan
from batchdet.training.steps import StepLine, read_steps
from tests.contract.conftest import Recorder
from tests.retraining.worlds import NUM_GOLD, NUM_LABELLED, job, label_world, put_files, put_world, settings


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    put_world(put_files(root))
    label_world(str(root))
    return root


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("spare")
    put_world(put_files(root))
    label_world(str(root))
    return root


@pytest.fixture
def torn(spare: Path) -> Iterator[Path]:
    """A world whose pictures a test may tear; the next one finds them whole."""
    shutil.rmtree(spare / "training", ignore_errors=True)
    yield spare
    put_world(put_files(spare))


@pytest.fixture
def own_world(tmp_path: Path) -> Path:
    """A world that a test may label again."""
    put_world(put_files(tmp_path))
    label_world(str(tmp_path))
    return tmp_path


def run(config: RetrainConfig, progress: Recorder | None = None) -> Retrained:
    return retrain(config, InlinePlace(), InlineRunner(Hardware("cpu", 1)), progress or Recorder())


@pytest.fixture(scope="module")
def trained(world: Path) -> Retrained:
    return run(job(str(world), "whole", held_out__every_steps=3, tensorboard=True))


def steps_of(config: RetrainConfig) -> list[StepLine]:
    return read_steps(open_store(config.output, {}))


def timeless(lines: list[StepLine]) -> list[tuple[object, ...]]:
    return [(line.step, dict(line.losses), line.gradient_norm, line.images, dict(line.skipped)) for line in lines]


def test_a_retraining_ends_with_a_measured_version_that_is_live(world: Path, trained: Retrained) -> None:
    registry = open_store(f"{world}/registry/whole", {})
    assert trained.release.promoted
    assert trained.release.reference == f"{registry.uri}@1"
    assert (trained.num_gold, trained.num_pseudo, trained.num_steps) == (NUM_GOLD, NUM_LABELLED, 6)
    assert read_promotions(registry).version == "1"
    (version,) = list_versions(str(world / "registry" / "whole"), {})
    document = retrained_document(trained)
    assert version.metrics["map"] == document["student"]["map"]
    assert document["teacher"]["model_digest"] != document["student"]["model_digest"]
    assert len(document["losses"]) == 2


def test_the_card_says_what_the_weights_were_made_of(world: Path, trained: Retrained) -> None:
    card = read_card(open_store(f"{world}/registry/whole", {}), "1")
    lineage = card["lineage"]
    assert trained.teacher is not None
    assert lineage["parent"]["digest"] == trained.teacher.model.digest
    assert tuple(lineage["run_ids"]) == trained.run_ids
    assert lineage["policies"].keys() == set(trained.run_ids)
    assert lineage["bands"]["bands"] == {"accept": 0.5, "ignore": 0.3}
    assert lineage["gold"]["digest"].startswith("sha256:")
    assert canonical_json(lineage["config"]) == job(str(world), "whole").training.canonical
    assert lineage["steps"] == 6
    assert "batchdet" in lineage["versions"]


def test_the_training_leaves_a_line_for_every_step_and_a_plot(world: Path, trained: Retrained) -> None:
    lines = steps_of(job(str(world), "whole"))
    assert [line.step for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(len(line.images) == 4 and line.losses and line.seconds > 0 for line in lines)
    assert [line.step for line in lines if line.map is not None] == [3, 6]
    assert trained.release.candidate is not None
    # The engine that labels rounds otherwise than torch, and few objects make a rank worth a point.
    assert lines[-1].map == pytest.approx(trained.release.candidate.evaluation.score.map, abs=0.02)
    assert len(list((world / "whole" / "tensorboard").iterdir())) == 3
    assert (world / "whole" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_again_finds_all_of_it_done(world: Path, trained: Retrained) -> None:
    progress = Recorder()
    again = run(job(str(world), "whole"), progress)
    assert again.release.reference == trained.release.reference
    assert again.release.promoted
    assert not any(" step " in line for line in progress.lines)
    assert len(list_versions(str(world / "registry" / "whole"), {})) == 1
    assert len(read_promotions(open_store(f"{world}/registry/whole", {})).history) == 1


class _StoppedError(Exception):
    pass


def learn(config: RetrainConfig) -> None:
    """The steps of a retraining and nothing else."""
    teach(config, Post(0, 1, "cpu", 1), lambda _: None)


@pytest.mark.parametrize(("after", "go_on"), [(1, learn), (2, run), (5, learn)])
def test_a_training_that_was_stopped_goes_on_to_the_same_end(
    world: Path, trained: Retrained, after: int, go_on: Callable[[RetrainConfig], object]
) -> None:
    """Between checkpoints, right at one, and a step before the last: bit for bit the undisturbed training."""
    config = job(str(world), f"stopped-{after}")

    def stop(line: StepLine) -> None:
        if line.step == after:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        retrain(config, _Stopping(stop), InlineRunner(Hardware("cpu", 1)), Recorder())
    go_on(config)
    assert timeless(steps_of(config)) == timeless(steps_of(job(str(world), "whole")))
    whole, resumed = (
        (world / name / "checkpoints" / "00000006" / "state.safetensors").read_bytes()
        for name in ("whole", f"stopped-{after}")
    )
    assert whole == resumed


class _Stopping(InlinePlace):
    """A place where whoever hears of a step may end the training."""

    def __init__(self, stop: object) -> None:
        self._stop = stop

    def teach(self, job: RetrainConfig, tell: object) -> None:
        teach(job, Post(0, 1, "cpu", 1), self._stop)  # type: ignore[arg-type]


def planned(config: RetrainConfig) -> TrainPlan:
    """The plan a start of the command leaves, that does not get far."""

    def stop(_: StepLine) -> None:
        raise _StoppedError

    with pytest.raises(_StoppedError):
        retrain(config, _Stopping(stop), InlineRunner(Hardware("cpu", 1)), Recorder())
    plan = read_plan(open_store(config.output, {}))
    assert plan is not None
    return plan


def test_a_training_keeps_its_plan_when_more_is_labelled(own_world: Path) -> None:
    config = job(str(own_world), checkpoints__kept=1)
    assert planned(config).pseudo.num_rows == NUM_LABELLED
    label_world_anew = own_world / "photos" / "scene-00099.jpg"
    shutil.copy(next((own_world / "photos").iterdir()), label_world_anew)
    label_world(str(own_world))
    assert planned(config).pseudo.num_rows == NUM_LABELLED
    assert planned(job(str(own_world), "later")).pseudo.num_rows == NUM_LABELLED + 1
    learn(config)
    assert len(list((own_world / "training" / "checkpoints").glob("*/state.json"))) == 1


def test_changed_vanished_and_damaged_pictures_are_skipped_and_counted(torn: Path) -> None:
    pictures = sorted((torn / "photos").iterdir())
    pictures[0].write_bytes(pictures[1].read_bytes())
    pictures[2].unlink()
    gold = sorted((torn / "gold").iterdir())
    config = job(str(torn), pictures__max_failure_rate=1.0)
    gold[0].write_bytes(b"not a picture")
    made = run(config)
    skipped = {uri.rpartition("/")[2]: why for line in steps_of(config) for uri, why in line.skipped.items()}
    assert skipped == {pictures[0].name: "changed", pictures[2].name: "not_found", gold[0].name: "not_an_image"}
    assert made.num_skipped == sum(len(line.skipped) for line in steps_of(config)) >= 3


def test_too_many_skipped_pictures_end_the_training(torn: Path) -> None:
    for picture in sorted((torn / "photos").iterdir())[1:]:
        picture.write_bytes(b"")
    with pytest.raises(
        FailureRateError, match=r"pictures\.max_failure_rate 0\.05 allows, such as file://.*\(changed\)"
    ):
        run(job(str(torn)))


def test_held_out_images_are_never_learned_from(own_world: Path) -> None:
    """Even where they lie among the labelled photos."""
    config = job(
        str(own_world),
        held_out={"annotations": f"{own_world}/gold.json", "images": f"{own_world}/photos"},
        gold=None,
    )
    for picture in (own_world / "gold").iterdir():
        shutil.copy(picture, own_world / "photos")
    label_world(str(own_world))
    assert planned(config).pseudo.num_rows == NUM_LABELLED
    learn(config)
    held_out = {picture.name for picture in (own_world / "gold").iterdir()}
    learned = {uri.rpartition("/")[2] for line in steps_of(config) for uri in line.images}
    assert learned and not learned & held_out


def test_copies_of_held_out_images_are_never_learned_from(own_world: Path) -> None:
    """Neither as pseudo-labels nor as gold, under whatever name the same bytes lie."""
    held_out = sorted((own_world / "held-out").iterdir())
    shutil.copy(held_out[0], own_world / "photos" / f"another-name{held_out[0].suffix}")
    shutil.copy(held_out[1], sorted((own_world / "gold").iterdir())[0])
    shutil.copy(sorted((own_world / "gold").iterdir())[1], own_world / "photos" / "gold-too.jpg")
    label_world(str(own_world))
    plan = planned(job(str(own_world)))
    assert plan.pseudo.num_rows == NUM_LABELLED
    assert plan.gold.num_rows == NUM_GOLD - 1


def test_a_student_that_is_worse_stays_unpromoted(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights thrown far off: exit 3 with the reason, the version is kept, nothing goes live."""
    throw = {
        "optimiser": {"learning_rate": 0.3, "scaling": "none"},
        "length": {"steps": 3, "batch_images": 4, "seed": 7},
    }
    fields = settings(str(world), "worse", gate={}, **throw)
    assert main(["retrain", "--ray", "off", "--json", *flags(fields)]) == 3
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["promoted"] is False
    assert document["reasons"][0].startswith("mAP falls from ")
    assert f"error: {document['reference']} is not promoted: mAP falls" in said.err
    registry = open_store(f"{world}/registry/worse", {})
    assert read_promotions(registry).version is None
    assert read_card(registry, "1")["metrics"]["refused_because"] == document["reasons"]


def flags(fields: dict[str, object]) -> list[str]:
    return [f"--set={name}={json.dumps(value)}" for name, value in fields.items()]


def test_a_student_of_new_categories_is_not_compared_with_its_teacher(world: Path, tmp_path: Path) -> None:
    """And gold of which the student knows no category is refused before a step is taken."""
    fields: dict[str, object] = {"source": None, "length": {"steps": 1, "batch_images": 4, "seed": 7}}
    for part in ("gold", "held-out"):
        tree = json.loads((world / f"{part}.json").read_text())
        for row in tree["categories"]:
            row["name"] = f"new {row['name']}"
        (tmp_path / f"{part}.json").write_text(json.dumps(tree))
        fields[f"{part.replace('-', '_')}__annotations"] = str(tmp_path / f"{part}.json")
    with pytest.raises(ConfigError, match="none of its categories is the model's"):
        run(job(str(world), "of-old", **fields))
    categories = ["__background__", *(row["name"] for row in tree["categories"])]
    made = run(job(str(world), "of-new", **fields, start__categories=categories))
    assert made.teacher is None
    assert made.release.candidate is not None and made.release.promoted
    registry = f"{world}/registry/live-of-old"
    live = import_version(ModelConfig(reference=str(shipped_model())), registry, {})
    promote_unmeasured(live, {}, no_gate=False)
    made = run(job(str(world), "of-new", **fields, start__categories=categories, registry=registry))
    assert not made.release.promoted
    assert made.release.reasons[0].startswith("version 1, which is live, knows no category of ")
    assert read_promotions(open_store(registry, {})).version == "1"


def test_held_out_gold_without_an_object_is_refused_before_a_step_is_taken(world: Path, tmp_path: Path) -> None:
    tree = json.loads((world / "held-out.json").read_text())
    (tmp_path / "held-out.json").write_text(json.dumps(tree | {"annotations": []}))
    with pytest.raises(ConfigError, match=r"held-out\.json: holds no object in these images"):
        run(job(str(world), "of-nothing", held_out__annotations=str(tmp_path / "held-out.json")))
    assert not (world / "of-nothing" / "plan").exists()


MISTAKES = [
    ({"optimiser.name": "lion"}, "optimiser.name: "),
    ({"optimizer.name": "sgd"}, "optimizer: unknown field"),
    ({"registry": "models/x@3"}, "registry: takes no version"),
    ({"workers": {"number": 9}}, "workers.number 9: more than length.batch_images 4"),
    ({"workers": {"least": 2}}, "workers.least 2: give workers.number"),
    ({"held_out.annotations": "{root}/gold.json"}, "held_out.annotations: these are gold.annotations"),
    ({"gold": {"annotations": "nowhere.json", "images": "nowhere"}}, "gold file://"),
    ({"start.reference": "nowhere"}, "model "),
    ({"network.precision": "bf16", "workers.gpus": 0}, "network.precision: bf16 is for training on GPUs"),
    ({"network.norms": "sync", "workers.gpus": 0}, "network.norms: sync works on GPUs only"),
    ({"source.runs": ["20200101T000000Z-00000000"]}, "source.runs: 20200101T000000Z-00000000 is not a complete run"),
]


@pytest.mark.parametrize(("change", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_a_mistake_is_one_line(
    world: Path, tmp_path: Path, change: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = settings(str(world), "mistaken", output=str(tmp_path / "out"))
    changed = json.loads(json.dumps(change).replace("{root}", str(world)))
    fields = {name: value for name, value in fields.items() if name.partition(".")[0] not in changed} | changed
    assert main(["retrain", "--ray", "off", *flags(fields)]) == 2
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {said}"), line
    assert "Traceback" not in err


def test_another_job_in_the_same_folder_is_refused(world: Path, trained: Retrained) -> None:
    with pytest.raises(ConfigError, match=r"optimiser\.momentum: the checkpoint was made with 0\.9, the job says 0\.5"):
        run(job(str(world), "whole", optimiser__momentum=0.5))


def test_flags_and_file_make_one_job(world: Path, tmp_path: Path, trained: Retrained) -> None:
    """The public names of the flags lead to the fields they say."""
    tree: dict[str, object] = {}
    for name, value in settings(str(world), "whole").items():
        node = tree
        *parents, leaf = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})  # type: ignore[assignment]
        node[leaf] = value
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert load_retrain(file, {}) == job(str(world), "whole")
    given = {
        "--labels": f"{world}/labels",
        "--gold": f"{world}/gold.json",
        "--images": f"{world}/gold",
        "--held-out": f"{world}/held-out.json",
        "--held-out-images": f"{world}/held-out",
        "--output": f"{world}/whole",
        "--registry": f"{world}/registry/whole",
        "--steps": "6",
    }
    assert main(["retrain", str(file), "--ray", "off", *(text for pair in given.items() for text in pair)]) == 0


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Trainings set torch's threads; other tests get theirs back."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
