"""From JPEG files to committed detections: batchdet, the recipe people write today, and the network alone.

Every contender runs as a command of its own, in turn, on two data set sizes; the difference gives seconds per image
without start-up. Then the detections are compared: they must be the same.

Run: python -m tests.benchmarks.end_to_end [--images DIR] [--rounds 3] [--quick]
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.photographs import as_tensors, load_jpegs, write_folder
from tests.benchmarks.process_tree import Cost, run_measured
from tests.benchmarks.same_rows import Rows, compare, read_rows
from tests.benchmarks.stand_in import ARCHITECTURE, CATEGORIES, FLOOR, save_stand_in

IMAGES_PER_SHARD = 50
CALIBRATION_IMAGES = 24
QUICK_SHRINKING = 10
VERSIONS = ("torch", "torchvision", "ray", "pyarrow", "pillow", "numpy")
RECIPE, THRESHOLD_SET, ON_RAY, WITHOUT_RAY, NETWORK = (
    "recipe",
    "recipe, threshold set",
    "batchdet --ray local",
    "batchdet --ray off",
    "network alone",
)

Command = Callable[[Path, Path], list[str]]


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to label.

    Attributes:
        sizes: images of the small and the large data set; both keep every process busy to the end.
        command: from the folders of images and output.
    """

    name: str
    sizes: tuple[int, int]
    command: Command


@dataclass(frozen=True, slots=True)
class Result:
    """Marginal seconds per image, one value a round."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    start: float

    @property
    def wall_median(self) -> float:
        """The median round."""
        return statistics.median(self.wall)

    @property
    def cpu_median(self) -> float:
        """The median round."""
        return statistics.median(self.cpu)


def contenders(weights: Path, cores: int) -> list[Contender]:
    """The contenders, with sizes that take each about half a minute on two cores."""

    def recipe(*flags: str) -> Command:
        script = ["-m", "tests.benchmarks.recipe"]
        return lambda images, output: [*script, str(images), str(output), str(weights), "--cpus", str(cores), *flags]

    def batchdet(ray: str) -> Command:
        return lambda images, output: _batchdet(images, output, weights, ray, cores)

    def network(images: Path, _output: Path) -> list[str]:
        count = len(list(images.iterdir()))
        return ["-m", "tests.benchmarks.forward", str(weights), str(count), "--processes", str(cores)]

    return [
        Contender(RECIPE, (60, 300), recipe()),
        Contender(THRESHOLD_SET, (100, 600), recipe("--score-threshold", str(FLOOR))),
        Contender(ON_RAY, (200, 1400), batchdet("local")),
        Contender(WITHOUT_RAY, (200, 1400), batchdet("off")),
        Contender(NETWORK, (200, 1400), network),
    ]


def _batchdet(images: Path, output: Path, weights: Path, ray: str, cores: int) -> list[str]:
    settings = {
        "model.architecture": ARCHITECTURE,
        "model.categories": json.dumps(CATEGORIES),
        "model.score_floor": FLOOR,
        "plan.images_per_shard": IMAGES_PER_SHARD,
        "cluster.gpus_per_labeller": 0,
        "cluster.labellers": cores,
    }
    flags = [flag for name, value in settings.items() for flag in ("--set", f"{name}={value}")]
    places = ["--source", str(images), "--output", str(output), "--model", str(weights)]
    return ["-m", "batchdet", "label", *places, "--ray", ray, *flags]


class Bench:
    """Runs commands on folders it makes."""

    def __init__(self, folder: Path, jpegs: list[bytes]) -> None:
        self._folder = folder
        self._jpegs = jpegs

    def measure(self, contender: Contender, size: int, round_number: int) -> Cost:
        """One run, its output kept under its name and size."""
        images = self._folder / "images" / str(size)
        if not images.exists():
            write_folder(self._jpegs, images, size)
        output = self.output(contender.name, size, round_number)
        output.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, *contender.command(images, output)]
        # The threads of all processes together are as many as cores only where each library is told.
        environment = {"CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"}
        cost = run_measured(command, environment, output.with_suffix(".log"))
        _say(f"{contender.name}, {size} images: {cost.wall:.1f} s, {cost.cpu:.1f} s of CPU")
        return cost

    def output(self, name: str, size: int, round_number: int) -> Path:
        """Where a run writes."""
        return self._folder / "output" / f"{name.replace(' ', '_')}-{size}-{round_number}"

    def rows(self, contender: Contender) -> dict[str, Rows]:
        """Detections of the first round on the larger data set."""
        output = self.output(contender.name, contender.sizes[1], 0)
        if contender.name in (ON_RAY, WITHOUT_RAY):
            return read_rows(output.glob("detections/run_id=*/shard-*.parquet"), "image_uri")
        return read_rows(output.glob("*.parquet"), "path")


def measure_all(bench: Bench, entrants: list[Contender], rounds: int) -> dict[str, Result]:
    """Every contender on both sizes, taking turns so that all meet the same machine."""
    costs: dict[tuple[str, int], list[Cost]] = {}
    for number in range(rounds):
        for place in (0, 1):
            for contender in entrants:
                cost = bench.measure(contender, contender.sizes[place], number)
                costs.setdefault((contender.name, place), []).append(cost)
    return {one.name: _slope(one.sizes, costs[one.name, 0], costs[one.name, 1]) for one in entrants}


def _slope(sizes: tuple[int, int], small: list[Cost], large: list[Cost]) -> Result:
    more = sizes[1] - sizes[0]
    walls = tuple((long.wall - short.wall) / more for short, long in zip(small, large, strict=True))
    cpus = tuple((long.cpu - short.cpu) / more for short, long in zip(small, large, strict=True))
    wall = statistics.median(walls)
    return Result(walls, cpus, statistics.median(short.wall for short in small) - sizes[0] * wall)


def table(results: dict[str, Result]) -> str:
    """The ratios as Markdown."""
    lines = [
        "| | wall ms/image | CPU ms/image | × the recipe | × with its threshold set | share of the network's speed "
        "| start-up s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        times = [f"{result.wall_median * 1e3:.1f}", f"{result.cpu_median * 1e3:.1f}"]
        ratios = [results[other].wall_median / result.wall_median for other in (RECIPE, THRESHOLD_SET, NETWORK)]
        cells = [name, *times, *(f"{ratio:.1f}" for ratio in ratios[:2]), f"{ratios[2]:.0%}", f"{result.start:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def check_rows(bench: Bench, entrants: list[Contender]) -> bool:
    """Compare every labelling with the recipe's, above the floor; whether all are the same."""
    by_name = {one.name: one for one in entrants}
    stock = bench.rows(by_name[RECIPE])
    same = True
    for name in (THRESHOLD_SET, ON_RAY, WITHOUT_RAY):
        shared = min(by_name[name].sizes[1], by_name[RECIPE].sizes[1])
        names = {f"{number:06d}.jpg" for number in range(shared)}
        agreement = compare(bench.rows(by_name[name]), stock, names, FLOOR)
        print(f"{name} against the recipe: {agreement.describe()}")
        same = same and not agreement.different
    return same


def describe_machine(cores: int) -> str:
    """Hardware, versions and date in one line."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    today = datetime.now(UTC).date().isoformat()
    return f"{cores} cores of {model or platform.machine()}, Python {platform.python_version()}, {versions}, {today}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of photographs; default: drawn scenes")
    parser.add_argument("--rounds", type=int, default=1, help="the table shows medians")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--only", action="append", help="a contender by name; the others are left out")
    parser.add_argument("--quick", action="store_true", help="so few images that only the detections mean anything")
    parser.add_argument("--keep", type=Path, help="make the data sets and outputs in this new folder, and keep them")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    with tempfile.TemporaryDirectory(prefix="batchdet-benchmark-") as made:
        raise SystemExit(run(options, options.keep or Path(made)))


def run(options: argparse.Namespace, folder: Path) -> int:
    """The whole benchmark; the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    jpegs = load_jpegs(options.images)
    step = max(1, len(jpegs) // CALIBRATION_IMAGES)
    weights = save_stand_in(as_tensors(jpegs[::step][:CALIBRATION_IMAGES]), folder / "stand-in.safetensors")
    entrants = [one for one in contenders(weights, options.cores) if not options.only or one.name in options.only]
    if options.quick:
        shrink = QUICK_SHRINKING
        entrants = [Contender(e.name, (e.sizes[0] // shrink, e.sizes[1] // shrink), e.command) for e in entrants]
    bench = Bench(folder, jpegs)
    results = measure_all(bench, entrants, options.rounds)
    print(describe_machine(options.cores))
    print(table(results))
    return 0 if check_rows(bench, entrants) else 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
