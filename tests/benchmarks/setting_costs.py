"""What each setting that moves pixels or scores costs in mAP: `python -m tests.benchmarks.setting_costs`.

Draws scenes no checkpoint has seen, enlarged so that a fast decoder has something to leave out, and evaluates the
shipped checkpoint on them with every value of every field of `config.EXACT_SETTINGS`, each beside the exact one. With
--gold and --images it takes a gold set of yours, with --model a model that knows its categories. fp16 needs a GPU: CPUs
emulate it.
"""

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image

from batchdet.cli.evaluate import cost_line
from batchdet.config import EXACT_SETTINGS, JobConfig, load_job
from batchdet.demo.shipped import shipped_model
from batchdet.labelling import local_runner
from batchdet.measure import DEFAULTS, measure_model
from batchdet.progress import open_progress
from tests.training.gold_sets import write_scenes

SEED = 90_210


def inexact_settings() -> Iterator[tuple[str, Any]]:
    """Every value of the fields that may change rows, but the one that changes nothing."""
    for field, exact in EXACT_SETTINGS.items():
        section, _, name = field.partition(".")
        form: Any = JobConfig.model_fields[section].annotation
        for value in get_args(form.model_fields[name].annotation):
            if value != exact and (value != "fp16" or torch.cuda.is_available()):
                yield field, value


def draw_gold(folder: Path, scenes: int, enlarge: int) -> None:
    """Scenes as JPEG and their truth, both larger by a whole factor, so that decoding has something to leave out."""
    tree = write_scenes(folder, SEED, scenes)
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            exif, kind, larger = image.getexif(), image.format, image.resize([side * enlarge for side in image.size])
        data = io.BytesIO()
        larger.save(data, kind, exif=exif, quality=90)
        path.write_bytes(data.getvalue())
    for annotation in tree["annotations"]:
        annotation["bbox"] = [side * enlarge for side in annotation["bbox"]]
        annotation["area"] *= enlarge**2
    (folder / "gold.json").write_text(json.dumps(tree))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--enlarge", type=int, default=4)
    parser.add_argument("--gold")
    parser.add_argument("--images")
    parser.add_argument("--model", default=str(shipped_model()))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchdet-costs-") as made:
        if arguments.gold is None:
            draw_gold(Path(made) / "scenes", arguments.scenes, arguments.enlarge)
        images = arguments.images or f"{made}/scenes/images"
        fields = {"source": images, "output": f"{made}/labels", "model.reference": arguments.model, **DEFAULTS}
        for field, value in inexact_settings():
            job = load_job(None, {**fields, field: value})
            runner = local_runner(job.cluster)
            with open_progress(sys.stderr) as progress:
                measured = measure_model(job, arguments.gold or f"{made}/scenes/gold.json", runner, progress)
            sys.stdout.write(f"{cost_line(measured)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
