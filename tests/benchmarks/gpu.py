"""One GPU: images a second on the device, stock torchvision against batchdet, and from JPEG files to Parquet.

Needs no network and no Ray: torch, torchvision, numpy, pyarrow and pillow, and of small wheels pydantic, pyyaml,
fsspec, safetensors, tenacity, rich and simplejpeg. Weights are seeded, so detections mean nothing, but both sides must
have the same. Device side is from pixels on the device to detections on the host; stock's own transform runs there
too, as its users have it. About 3 minutes a model.
`--device cpu --quick` shows that it works where there is no GPU.

Run: python -m tests.benchmarks.gpu [--model NAME …] [--precision fp16 …] [--to DIR] [--device cpu --quick]
"""

import argparse
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from batchdet.config import ModelConfig, load_job
from batchdet.engine.checkpoint import load_detector
from batchdet.engine.detector import Batch, Detector
from batchdet.labelling import Hardware, InlineRunner
from batchdet.progress import PlainProgress
from batchdet.records import ModelFiles
from batchdet.run import label_bucket
from tests.benchmarks.photographs import load_jpegs, write_folder
from tests.benchmarks.report import describe_machine, print_results, print_table, ratios, spread, today
from tests.benchmarks.same_rows import Rows, compare
from tests.engine.seeded import batch_of, pictures, seeded_model

CLASSES = 91
FLOOR = 0.05
BATCHES = {
    "ssd300_vgg16": (32, 64, 128),
    "ssdlite320_mobilenet_v3_large": (64, 128, 256),
    "fasterrcnn_resnet50_fpn": (4, 8, 16),
    "fasterrcnn_resnet50_fpn_v2": (4, 8, 16),
}
PICTURE = (480, 640)
"""(height, width) of what stock is given."""
COMPARED = 8
"""Pictures whose detections are compared."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done.

    Attributes:
        seconds: of each measurement.
        rounds: the sides take turns so often.
        files: pictures of the small and the large data set of an R-CNN; SSDs are faster and get more.
    """

    seconds: float
    rounds: int
    files: tuple[int, int]


FULL, QUICK = Effort(2.0, 3, (1000, 10_000)), Effort(0.0, 1, (4, 8))
SSD_FILES = 4
"""Times as many."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """One architecture with seeded weights, stock and as batchdet loads it."""

    name: str
    stock: nn.Module
    weights: Path
    device: torch.device

    def detector(self, precision: str) -> Detector:
        """As a labeller would have it."""
        return load_detector(self.config(precision), ModelFiles(self.weights, None), str(self.device))

    def config(self, precision: str) -> ModelConfig:
        """The model section of a job."""
        return ModelConfig.model_validate(self.fields(precision))

    def fields(self, precision: str) -> dict[str, Any]:
        """The same by name."""
        categories = ["__background__", *(f"category-{label}" for label in range(1, CLASSES))]
        model = {"reference": str(self.weights), "architecture": self.name, "categories": categories}
        return model | {"score_floor": FLOOR, "precision": precision}


def make_entrant(name: str, folder: Path, device: torch.device) -> Entrant:
    """Seed the weights, and write them where batchdet can load them."""
    limits = {"score_thresh" if name.startswith("ssd") else "box_score_thresh": FLOOR}
    stock = seeded_model(name, CLASSES, **limits)
    weights = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in stock.state_dict().items()}, weights)
    return Entrant(name, stock.to(device), weights, device)


def check_same(entrant: Entrant, say: Callable[[str], None]) -> bool:
    """Whether batchdet's detections on the device are stock's there, in fp32, fed the same pixels."""
    images = [picture.to(entrant.device) for picture in pictures(*[PICTURE] * COMPARED, seed=5)]
    with torch.inference_mode():
        theirs = {str(place): _rows(entrant.stock([image])[0]) for place, image in enumerate(images)}
        detector = entrant.detector("fp32")
        batches = [batch_of(entrant.stock, [image]) for image in images]
        found = [detector.detect(batch).cpu() for batch in batches]
    ours = {
        str(place): Rows(one.boxes.numpy(), one.scores.numpy(), one.labels.numpy()) for place, one in enumerate(found)
    }
    agreement = compare(ours, theirs, set(theirs), FLOOR)
    say(f"{entrant.name}, fp32, batchdet against stock on {entrant.device}: {agreement.describe()}")
    return not agreement.different


def _rows(found: dict[str, Tensor]) -> Rows:
    boxes, scores, labels = (found[name].cpu().numpy() for name in ("boxes", "scores", "labels"))
    return Rows(boxes, scores, labels)


def device_side(entrant: Entrant, precision: str, batch: int, effort: Effort) -> tuple[list[float], list[float]]:
    """Images a second of stock and of batchdet, a value a round."""
    images = [picture.to(entrant.device) for picture in pictures(PICTURE, seed=6)] * batch
    detector = entrant.detector(precision)
    prepared = _repeat(batch_of(entrant.stock, images[:1]), batch)
    half = torch.autocast(entrant.device.type, torch.float16, enabled=precision == "fp16")

    def stock() -> object:
        with torch.inference_mode(), half:
            return [{name: column.cpu() for name, column in found.items()} for found in entrant.stock(images)]

    paces: tuple[list[float], list[float]] = ([], [])
    for _ in range(effort.rounds):
        for work, pace in zip((stock, lambda: detector.detect(prepared).cpu()), paces, strict=True):
            pace.append(batch * _per_second(work, effort.seconds))
    return paces


def _repeat(batch: Batch, count: int) -> Batch:
    return Batch(batch.pixels.repeat(count, 1, 1, 1), batch.sizes * count, batch.original_sizes * count)


def _per_second(work: Callable[[], object], seconds: float) -> float:
    """Calls a second; each ends on the host, so nothing is left running."""
    work()
    calls, started = 0, time.perf_counter()
    while not calls or time.perf_counter() - started < seconds:
        work()
        calls += 1
    return calls / (time.perf_counter() - started)


def whole_way(entrant: Entrant, precision: str, folder: Path, threads: int, effort: Effort) -> tuple[float, str]:
    """Images a second from JPEG files to Parquet, start-up left out, and what the labeller says of its time."""
    few, many = (count * (SSD_FILES if entrant.name.startswith("ssd") else 1) for count in effort.files)
    jpegs = load_jpegs(None, most=min(many, 120))
    seconds, said = [], ""
    for count in (few, many):
        images = folder / f"jpegs-{count}"
        if not images.exists():
            write_folder(jpegs, images, count)
        fields = {
            "source": str(images),
            "output": str(folder / f"{entrant.name}-{precision}-{count}"),
            "model": entrant.fields(precision),
            "plan.images_per_shard": max(8, few // 4),
            "reading.prefetch_blocks": 2 * threads,
        }
        progress = io.StringIO()
        started = time.perf_counter()
        runner = InlineRunner(Hardware(entrant.device.type, threads))
        label_bucket(load_job(None, fields), runner, PlainProgress(progress))
        seconds.append(time.perf_counter() - started)
        said = next(line for line in progress.getvalue().splitlines() if "waiting for pixels" in line)
    return (many - few) / (seconds[1] - seconds[0]), said


def measure_model(entrant: Entrant, options: argparse.Namespace, folder: Path) -> tuple[bool, dict[str, float]]:
    """Everything of one model, printed as it comes; whether detections are the same, and numbers by name."""
    effort = QUICK if options.quick else FULL
    print(f"## {entrant.name}\n")
    same = check_same(entrant, lambda line: print(f"{line}\n", flush=True))
    rows, numbers = [], {}
    for precision in options.precision:
        best = 0.0
        for batch in (1,) if options.quick else options.batch or BATCHES[entrant.name]:
            stock, ours = device_side(entrant, precision, batch, effort)
            paces = (spread(pace, ".1f") for pace in (stock, ours))
            rows.append([precision, str(batch), *paces, spread(ratios(ours, stock), ".1f", "×")])
            best = max(best, median(ours))
        numbers[f"{entrant.name} {precision}: images a second"] = best
    print_table(["", "batch", "stock images/s", "batchdet images/s", "batchdet / stock"], rows)
    precision = options.precision[-1]
    pace, said = whole_way(entrant, precision, folder, options.threads, effort)
    share = pace / numbers[f"{entrant.name} {precision}: images a second"]
    numbers[f"{entrant.name}: whole / device side"] = share
    print(
        f"JPEG files of 640x480 to Parquet, {precision}, {options.threads} host threads: {pace:.1f} images/s, "
        f"{share:.0%} of the device side; {said}\n",
        flush=True,
    )
    return same, numbers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", action="append", choices=list(BATCHES), help="default: all")
    parser.add_argument("--precision", action="append", choices=["fp32", "fp16"], help="default: both, on a CPU fp32")
    parser.add_argument("--batch", action="append", type=int, help="default: three sizes that suit the model")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="that decode on the host")
    parser.add_argument("--quick", action="store_true", help="so little work that only the detections mean anything")
    parser.add_argument("--to", type=Path, help="also write a note into this folder")
    options = parser.parse_args(argv)
    options.precision = options.precision or (["fp32"] if options.device == "cpu" else ["fp32", "fp16"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with redirect_stdout(_Tee()) as printed:
        name, same = describe_device(options.device), _measure_models(options)
    if options.to:
        slug = "-".join(re.findall(r"[a-z0-9]+", name.lower()))
        options.to.mkdir(parents=True, exist_ok=True)
        text = f"# One device, {today()}\n\n{name}; {describe_machine(options.threads)}.\n\n{printed.getvalue()}"
        (options.to / f"gpu_{slug}_{today()}.md").write_text(text, encoding="utf-8")
    return 0 if same else 1


def _measure_models(options: argparse.Namespace) -> bool:
    same, numbers = True, {}
    with tempfile.TemporaryDirectory(prefix="batchdet-benchmark-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # for exported graphs, which nobody wants afterwards
        for name in options.model or BATCHES:
            entrant = make_entrant(name, Path(folder), torch.device(options.device))
            agrees, found = measure_model(entrant, options, Path(folder))
            same, numbers = same and agrees, numbers | found
    print_results(numbers)
    return same


def describe_device(device: str) -> str:
    """The device's name."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "no GPU"


class _Tee(io.StringIO):
    """Keeps what is printed and lets it through."""

    def write(self, text: str) -> int:
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
        return super().write(text)


if __name__ == "__main__":
    raise SystemExit(main())
