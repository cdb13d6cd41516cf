"""What pseudo-labels are worth on photographs: few gold ones, the same with pseudo-labels, and all of them as gold.

Blood cells (https://github.com/Shenggan/BCCD_Dataset, 205 pictures to train on, 72 to test on; MIT). For every seed 41
of the 205 are drawn as gold. Three trainings begin at the demo's checkpoint, which was made on drawn shapes and gets a
new head, and take the same steps by the same recipe; they differ in the labels only:

- baseline: the 41 gold pictures.
- student: the 41, and the other 164 with what the baseline says of them.
- all gold: the 205 with their human labels.

DIR holds `images/`, `annotations.json` (COCO) and `splits.json` ({"train": [file names], "test": [...]}). A study that
was stopped goes on by the same command with the same --work.

Run: python -m tests.benchmarks.bccd --data DIR [--seeds 0,1] [--steps N] [--work DIR] [--to DIR]
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from batchdet.cli.evaluate import as_document
from batchdet.config import ClusterConfig, load_job
from batchdet.demo.shipped import shipped_model
from batchdet.labelling import InlineRunner, local_hardware
from batchdet.progress import Progress, open_progress
from batchdet.retraining import InlinePlace, retrain
from batchdet.run import label_bucket
from batchdet.storage.filesystem import open_store
from batchdet.training.config import BACKGROUND
from batchdet.training.job import RetrainConfig, load_retrain
from batchdet.training.steps import StepLine, read_steps
from tests.benchmarks.report import describe_machine, hardware_slug, print_results, print_table, spread, today

NUM_GOLD = 41
KINDS = ("baseline", "student", "all gold")
RECIPE: Mapping[str, Any] = {
    "length.batch_images": 8,
    "optimiser": {"name": "adamw", "learning_rate": 0.001, "weight_decay": 0.03, "scaling": "none"},
    "schedule.warmup_steps": 20,
    "network.average": 0.98,
    "pseudo_labels": {"bands": {"accept": 0.5, "ignore": 0.05}, "empty_images": "drop"},
    "guard.action": "warn",
    "gate": {"tolerance": 1.0, "category_tolerance": 1.0},
    "checkpoints.every_steps": 20,
}
RECIPE_IN_WORDS = """\
- Baseline: 41 of the 205 training pictures with their human labels. Student: the same 41, half of every batch, and
  the other 164 with what the baseline said of them. All gold: human labels of all 205.
- All three begin at the demo's checkpoint (ssdlite320, trained on drawn shapes, under a new head) and take {steps}
  steps of {batch} pictures by the same recipe: a short schedule for a CPU, far from converged. Pseudo-labels: score
  0.5 and more; from 0.05 to 0.5 ignored.
"""
GOLD_SHARE = 0.5
"""Of the student's batches."""
NUM_LOOKS = 4
"""Points of a curve."""


@dataclass(frozen=True, slots=True)
class Taught:
    """One training of one seed.

    Attributes:
        measures: what `evaluate` prints, on the test pictures.
        lines: its steps.
        num_pseudo: pseudo-labelled pictures it learned from.
    """

    seed: int
    kind: str
    measures: Mapping[str, Any]
    lines: Sequence[StepLine]
    num_pseudo: int


class Study:
    """Every training of the study, each in a folder of its own.

    Args:
        data: see above.
        work: what an earlier start left in it is not done again.
        steps: of every training.
        threads: cores to take.
    """

    def __init__(self, data: Path, work: Path, steps: int, threads: int, progress: Progress) -> None:
        self._data, self._work, self._steps, self._threads, self._progress = data, work, steps, threads, progress
        self._look = max(1, steps // NUM_LOOKS)
        self._tree = json.loads((data / "annotations.json").read_text())
        self._splits = json.loads((data / "splits.json").read_text())
        work.mkdir(parents=True, exist_ok=True)
        self._write("test", self._splits["test"])
        self._write("train", self._splits["train"])

    def teach(self, seed: int) -> list[Taught]:
        """The three trainings of a seed."""
        rng = np.random.default_rng((seed, NUM_GOLD))
        chosen = rng.permutation(len(self._splits["train"]))[:NUM_GOLD]
        few = self._write(f"gold-{seed}", [self._splits["train"][place] for place in sorted(chosen)])
        baseline = self._train(seed, "baseline", {"gold.annotations": few})
        labels = self._label(seed)
        mixed = {"gold.annotations": few, "gold.share": GOLD_SHARE, "source.outputs": [labels]}
        student = self._train(seed, "student", mixed)
        return [baseline, student, self._train(seed, "all gold", {"gold.annotations": str(self._work / "train.json")})]

    def _write(self, name: str, images: Sequence[str]) -> str:
        """A COCO file of some of the pictures."""
        rows = [row for row in self._tree["images"] if row["file_name"] in set(images)]
        numbers = {row["id"] for row in rows}
        boxes = [row for row in self._tree["annotations"] if row["image_id"] in numbers]
        path = self._work / f"{name}.json"
        path.write_text(
            json.dumps({"images": rows, "annotations": boxes, "categories": self._tree["categories"]}), encoding="utf-8"
        )
        return str(path)

    def _job(self, seed: int, kind: str, labels: Mapping[str, Any]) -> RetrainConfig:
        slug = kind.replace(" ", "-")
        fields = {
            "gold.images": str(self._data / "images"),
            "held_out": {"annotations": str(self._work / "test.json"), "images": str(self._data / "images")},
            "start.reference": str(shipped_model()),
            "start.categories": [BACKGROUND, *(row["name"] for row in self._tree["categories"])],
            "output": str(self._work / f"{slug}-{seed}"),
            "registry": str(self._work / "registry" / f"{slug}-{seed}"),
            "held_out.every_steps": self._look,
            "length.steps": self._steps,
            "length.seed": seed,
            "workers.cpus": self._threads,
        }
        return load_retrain(None, {**RECIPE, **fields, **labels})

    def _train(self, seed: int, kind: str, labels: Mapping[str, Any]) -> Taught:
        job = self._job(seed, kind, labels)
        self._progress.log(f"seed {seed}: {kind}")
        made = retrain(job, InlinePlace(), self._runner(), self._progress)
        measured = made.release.candidate
        if measured is None:
            raise RuntimeError(f"{job.output}: nothing was measured")
        return Taught(seed, kind, as_document(measured), read_steps(open_store(job.output, {})), made.num_pseudo)

    def _runner(self) -> InlineRunner:
        return InlineRunner(local_hardware(ClusterConfig(cpus_per_labeller=self._threads)))

    def _label(self, seed: int) -> str:
        """The training pictures as the baseline sees them; which of them are gold, the training knows."""
        manifest = self._work / "train.txt"
        manifest.write_text("".join(f"{self._data / 'images' / name}\n" for name in self._splits["train"]))
        output = str(self._work / f"labels-{seed}")
        model = str(self._work / f"baseline-{seed}" / "model")
        job = load_job(None, {"source": str(manifest), "output": output, "model.reference": model})
        label_bucket(job, self._runner(), self._progress)
        return output


def write_note(taught: Sequence[Taught], options: argparse.Namespace) -> str:
    """The study as Markdown."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        print(f"# What pseudo-labels are worth on photographs of blood cells, {today()}\n")
        print(
            f"`python -m tests.benchmarks.bccd --data DIR --seeds {options.seeds} --steps {options.steps} "
            f"--threads {options.threads}`. {describe_machine(options.threads)}; shared with other work.\n"
        )
        print(RECIPE_IN_WORDS.format(steps=options.steps, batch=RECIPE["length.batch_images"]))
        print_table(("mAP on 72 test pictures", *KINDS), _table(taught))
        print("Each seed draws other 41 gold pictures, another order and another head; one seed alone proves little.\n")
        print_table(
            ("seed", "training", "mAP by step", "final loss", "pseudo-labelled", "minutes of steps, pauses too"),
            _curves(taught),
        )
        found = {f"{one.kind} mAP, seed {one.seed}": float(one.measures["map"]) for one in taught}
        print_results(found)
    return said.getvalue()


def _table(taught: Sequence[Taught]) -> list[list[str]]:
    """A row for all categories, for IoU 0.50, and for each category; seeds are spread in a cell."""
    names = taught[0].measures["per_category"]
    asks: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "all": lambda found: found["map"],
        "all, IoU 0.50": lambda found: found["map_50"],
        **{name: partial(_of_category, name) for name in names},
    }
    return [
        [what, *(spread([ask(one.measures) for one in taught if one.kind == kind], ".3f") for kind in KINDS)]
        for what, ask in asks.items()
    ]


def _of_category(name: str, measures: Mapping[str, Any]) -> float:
    return float(measures["per_category"][name])


def _curves(taught: Sequence[Taught]) -> list[list[str]]:
    return [
        [
            str(one.seed),
            one.kind,
            ", ".join(f"{line.step}: {line.map:.3f}" for line in one.lines if line.map is not None),
            f"{np.mean([line.loss for line in one.lines[-10:]]):.2f}",
            str(one.num_pseudo),
            f"{sum(line.seconds for line in one.lines) / 60:.1f}",
        ]
        for one in taught
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Teach every seed; print the note and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="default: bccd/ in BATCHDET_TEST_DATA")
    parser.add_argument("--seeds", default="0,1,2", help="whole numbers with commas between them")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, help="default: a folder that is removed afterwards")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent, help="folder of the note")
    options = parser.parse_args(argv)
    data = options.data or Path(os.environ["BATCHDET_TEST_DATA"]) / "bccd"
    taught: list[Taught] = []
    with tempfile.TemporaryDirectory(prefix="batchdet-bccd-") as scratch, open_progress(sys.stderr) as progress:
        study = Study(data, options.work or Path(scratch), options.steps, options.threads, progress)
        for seed in options.seeds.split(","):
            taught += study.teach(int(seed))
    note = write_note(taught, options)
    print(note)
    (options.to / f"bccd_{hardware_slug(options.threads)}_{today()}.md").write_text(note, encoding="utf-8")


if __name__ == "__main__":
    main()
