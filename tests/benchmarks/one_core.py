"""One process, one thread, no cluster: JPEG bytes to columns by batchdet's engine, against the loop people write.

The loop: PIL, a stock torchvision model with its own threshold, one dict a detection. Both take the same pictures in
turn. Efficiency is the time of the network alone over batchdet's whole time. About 5 minutes.

Run: python -m tests.benchmarks.one_core [--images DIR] [--size 640x480 …] [--set field=value …] [--quick]
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from batchdet.cli.options import read_settings
from batchdet.config import JobConfig, load_job
from batchdet.engine.backends.backend import Settings
from batchdet.engine.backends.choice import choose
from batchdet.engine.backends.graphs import graphs_folder
from batchdet.engine.checkpoint import load_detector, load_model
from batchdet.engine.families import FAMILIES
from batchdet.engine.pipeline import detect_blocks
from batchdet.engine.postfilter import PostFilter
from batchdet.engine.prepare import prepare_block
from batchdet.engine.scale import SCALES
from batchdet.records import EncodedImage, ImageRef, ModelFiles, Shard
from batchdet.storage.tables import ShardTables, shard_tables
from batchdet.timeline import STAGES, Timeline
from tests.benchmarks.loader import load_stock, to_rows
from tests.benchmarks.photographs import SIZES, as_tensors, load_jpegs
from tests.benchmarks.report import (
    add_common_flags,
    describe_machine,
    pin,
    print_results,
    print_table,
    ratios,
    spread,
)
from tests.benchmarks.roofline import flops_of, flops_per_second
from tests.benchmarks.stand_in import ARCHITECTURE, CATEGORIES, FLOOR, save_stand_in

QUICK_IMAGES = 3
IMAGES = {"640x480": 32, "1920x1080": 24, "4000x3000": 8}
"""Pictures a round."""
RUN_ID = "20260101T000000Z-00000000"


def make_job(weights: Path, settings: dict[str, Any]) -> JobConfig:
    """The stand-in model, with settings of a job."""
    model = {
        "model.reference": str(weights),
        "model.architecture": ARCHITECTURE,
        "model.categories": CATEGORIES,
        "model.score_floor": FLOOR,
    }
    return load_job(None, {"source": "-", "output": "-", **model, **settings})


def naive_way(weights: Path) -> Callable[[Sequence[bytes]], list[dict[str, Any]]]:
    """The loop people write: every picture by itself, to rows."""
    model = load_stock(weights)

    def label(jpegs: Sequence[bytes]) -> list[dict[str, Any]]:
        rows = []
        with torch.inference_mode():
            for place, data in enumerate(jpegs):
                pixels = to_tensor(Image.open(io.BytesIO(data)).convert("RGB"))
                rows += to_rows(_uri(place), model([pixels])[0])
        return rows

    return label


def our_way(job: JobConfig, weights: Path, timeline: Timeline) -> Callable[[Sequence[bytes]], ShardTables]:
    """batchdet's engine on encoded images, to the columns of a shard."""
    detector = load_detector(job.model, ModelFiles(weights, None), "cpu", threads=1)
    spec, postfilter = detector.info.input_spec, PostFilter(job.policy, CATEGORIES, FLOOR)

    def label(jpegs: Sequence[bytes]) -> ShardTables:
        encoded = [EncodedImage(ImageRef(_uri(place)), data) for place, data in enumerate(jpegs)]
        with timeline.span("decode", len(jpegs)):
            block = prepare_block(encoded, spec, job.plan.max_pixels, SCALES[job.reading.decode])
        outcomes = list(detect_blocks([block], detector, postfilter, timeline))
        with timeline.span("encode", len(jpegs)):
            return shard_tables(Shard(RUN_ID, 0, block.refs), outcomes, CATEGORIES, datetime.now(UTC))

    return label


def network_way(job: JobConfig, weights: Path) -> Callable[[Sequence[bytes]], None]:
    """The network alone, in the backend and batches that batchdet takes, on as many prepared pictures."""
    model, info = load_model(job.model, ModelFiles(weights, None))
    family = FAMILIES[info.architecture]
    settings = Settings(torch.device("cpu"), 1, job.model.precision, graphs_folder(info.digest))
    choice = choose(job.model.backend, family.parts(model), settings, partial(family.drift, model))
    count = family.batch_images["cpu"]
    size = info.input_spec.fixed_size or (320, 320)
    pixels = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def forward(jpegs: Sequence[bytes]) -> None:
        with torch.inference_mode():
            for start in range(0, len(jpegs), count):
                choice.networks["network"](pixels[: len(jpegs) - start])

    return forward


def least_ms(job: JobConfig, weights: Path) -> float:
    """Milliseconds an image that the network's multiplications in float32 take at this core's best."""
    model, info = load_model(job.model, ModelFiles(weights, None))
    parts = FAMILIES[info.architecture].parts(model).values()
    return sum(map(flops_of, parts)) / flops_per_second() * 1e3


def measure(ways: Sequence[Callable[[Sequence[bytes]], object]], jpegs: Sequence[bytes], rounds: int) -> list[Any]:
    """CPU milliseconds an image of each way, a value a round; the ways take turns, and a first round warms up."""
    spent: list[list[float]] = [[] for _ in ways]
    for number in range(rounds + 1):
        for way, times in zip(ways, spent, strict=True):
            started = time.process_time()
            way(jpegs)
            if number:
                times.append((time.process_time() - started) * 1e3 / len(jpegs))
    return spent


def same_detections(ours: ShardTables, naive: list[dict[str, Any]]) -> str:
    """How the two labellings compare above the floor, in a line."""
    mine = ours.detections.num_rows
    theirs = sum(row["score"] > FLOOR for row in naive)
    return f"{mine} detections above {FLOOR}, the loop has {theirs}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_flags(parser, cores=1)
    parser.add_argument("--images", type=Path, help="a folder of photographs; default: drawn scenes")
    parser.add_argument("--size", action="append", choices=list(SIZES), help="default: all")
    parser.add_argument("--set", action="append", dest="settings", help="a field of the job")
    parser.add_argument("--decode", action="append", help="exact or fast, as reading.decode; default: exact")
    options = parser.parse_args(argv)
    pin(options.cores)
    torch.set_num_threads(1)
    print(f"{describe_machine(options.cores)}; settings: {' '.join(options.settings or ['none'])}\n")
    with tempfile.TemporaryDirectory(prefix="batchdet-benchmark-") as made:
        weights = Path(made) / "stand-in.safetensors"
        os.environ["XDG_CACHE_HOME"] = made  # for exported graphs, which nobody wants afterwards
        cases = product(options.size or SIZES, options.decode or ["exact"])
        measured = [_run_case(options, size, decode, weights) for size, decode in cases]
    columns = ("", "loop ms/image", "batchdet", "network alone", "loop / batchdet", "efficiency", "detections")
    print_table(columns, [case.cells for case in measured])
    print("batchdet's stages, ms an image:\n\n- " + "\n- ".join(case.stages for case in measured) + "\n")
    print_results({name: value for case in measured for name, value in case.numbers.items()})
    return 0


@dataclass(frozen=True, slots=True)
class _Case:
    """One size and way to decode: a row of the table, batchdet's stages in words, and numbers by name."""

    cells: list[str]
    stages: str
    numbers: dict[str, float]


def _run_case(options: argparse.Namespace, size: str, decode: str, weights: Path) -> _Case:
    jpegs = load_jpegs(options.images, size, QUICK_IMAGES if options.quick else IMAGES[size])
    save_stand_in(as_tensors(jpegs[:8]), weights)
    job = make_job(weights, read_settings(options.settings) | {"reading.decode": decode})
    timeline = Timeline()
    naive_label, our_label = naive_way(weights), our_way(job, weights, timeline)
    detections = same_detections(our_label(jpegs), naive_label(jpegs))
    before = timeline.seconds
    rounds = 1 if options.quick else options.rounds
    naive, ours, network = measure([naive_label, our_label, network_way(job, weights)], jpegs, rounds)
    speed, efficiency = ratios(naive, ours), ratios(network, ours)
    name = f"{size} {decode}"
    cells = [name, *(spread(times, ".1f") for times in (naive, ours, network)), spread(speed, ".1f", "×")]
    cells += [spread([share * 100 for share in efficiency], ".0f", "%"), detections]
    images = len(jpegs) * (rounds + 1)
    spent = {stage: (timeline.seconds[stage] - before[stage]) * 1e3 / images for stage in STAGES}
    stages = ", ".join(f"{stage} {value:.2f}" for stage, value in spent.items() if value)
    least = least_ms(job, weights)
    stages += f"; the network's multiplications take at least {least:.1f}"
    numbers = {
        f"{name}: loop / batchdet": median(speed),
        f"{name}: share of the network's speed": median(efficiency),
        f"{name}: loop / multiplications": median(naive) / least,
    }
    return _Case(cells, f"{name}: {stages}", numbers)


def _uri(place: int) -> str:
    return f"memory://{place:06d}.jpg"


if __name__ == "__main__":
    raise SystemExit(main())
