"""From JPEG files to committed detections: batchdet, what people write today, and the network alone.

Every contender runs as a command of its own, in turn, on two data set sizes; the difference gives seconds per image
without start-up. Then the detections are compared: they must be the same. About 8 minutes a size and round on two
cores. FiftyOne's `apply_model` is not among the peers: installing FiftyOne downloads MongoDB from its makers.

Run: python -m tests.benchmarks.end_to_end [--images DIR] [--size 640x480 …] [--rounds 3] [--quick]
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.contenders import (
    NETWORK,
    ON_RAY,
    PICTURE_COST,
    RECIPE,
    THRESHOLD_SET,
    WITHOUT_RAY,
    Contender,
    contenders,
    read_variants,
)
from tests.benchmarks.photographs import SIZES, as_tensors, load_jpegs, write_folder
from tests.benchmarks.process_tree import Cost, run_measured
from tests.benchmarks.report import (
    add_common_flags,
    describe_machine,
    pin,
    print_results,
    print_table,
    ratios,
    spread,
)
from tests.benchmarks.same_rows import Rows, compare, read_rows
from tests.benchmarks.stand_in import FLOOR, save_stand_in

CALIBRATION_IMAGES = 24
QUICK_FACTOR = 0.1


@dataclass(frozen=True, slots=True)
class Result:
    """Marginal seconds per image, one value a round; `start` is what the first image costs more."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    start: float


class Bench:
    """Runs commands on folders it makes."""

    def __init__(self, folder: Path, jpegs: list[bytes]) -> None:
        self._folder = folder
        self._jpegs = jpegs

    def measure(self, contender: Contender, size: int, round_number: int, *flags: str) -> Cost:
        """One run, its output kept under its name and size, what it says beside it."""
        images = self._folder / "images" / str(size)
        if not images.exists():
            write_folder(self._jpegs, images, size)
        output = self.output(contender.name, size, round_number)
        output.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, *contender.command(images, output), *flags]
        # The threads of all processes together are as many as cores only where each library is told.
        environment = {
            "CUDA_VISIBLE_DEVICES": "",
            "RAY_USAGE_STATS_ENABLED": "0",
            "XDG_CACHE_HOME": str(self._folder / "cache"),
        }
        cost = run_measured(command, environment, self._log(output))
        _say(f"{contender.name}, {size} images: {cost.wall:.1f} s, {cost.cpu:.1f} s of CPU")
        return cost

    def profile(self, contender: Contender) -> str:
        """What one more run on the larger data set says of its stages."""
        size, number = contender.sizes[1], -1
        self.measure(contender, size, number, "--profile")
        lines = self._log(self.output(contender.name, size, number)).read_text().splitlines()
        first = next(place for place, line in enumerate(lines) if line.startswith("stage "))
        last = next(place for place, line in enumerate(lines) if line.startswith("labellers: ") and place > first)
        return "\n".join(lines[first : last + 1])

    def output(self, name: str, size: int, round_number: int) -> Path:
        """Where a run writes."""
        return self._folder / "output" / f"{name.replace(' ', '_')}-{size}-{round_number}"

    @staticmethod
    def _log(output: Path) -> Path:
        return output.with_suffix(".log")

    def rows(self, contender: Contender) -> dict[str, Rows]:
        """Detections of the first round on the larger data set."""
        output = self.output(contender.name, contender.sizes[1], 0)
        if contender.is_batchdet:
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


def show(results: dict[str, Result]) -> None:
    """The times, and the ratios of runs that took turns, as Markdown."""
    references = [name for name in (RECIPE, THRESHOLD_SET, NETWORK) if name in results]
    rows = []
    for name, result in results.items():
        times = [spread([second * 1e3 for second in seconds], ".1f") for seconds in (result.wall, result.cpu)]
        against = [spread(ratios(results[other].wall, result.wall), ".1f", "×") for other in references]
        rows.append([name, *times, *against, f"{result.start:.1f}"])
    columns = [f"speed / {name}" for name in references]
    print_table(["", "wall ms/image", "CPU ms/image", *columns, "start-up s"], rows)


def numbers(results: dict[str, Result], size: str) -> dict[str, float]:
    """What `goals` asks about: how many times faster than the peers, and what Ray adds."""
    found = {}
    for name, result in results.items():
        for peer in (RECIPE, THRESHOLD_SET):
            if name.startswith(ON_RAY) and peer in results:
                found[f"{size}: {name} / {peer}"] = statistics.median(ratios(results[peer].wall, result.wall))
    if ON_RAY in results and WITHOUT_RAY in results:
        more = ratios(results[ON_RAY].cpu, results[WITHOUT_RAY].cpu)
        found[f"{size}: CPU of Ray over none"] = statistics.median(more) - 1
    return found


def check_rows(bench: Bench, entrants: Sequence[Contender]) -> bool:
    """Compare every labelling with the recipe's, above the floor; whether all that must be are the same."""
    by_name = {one.name: one for one in entrants if one.name != NETWORK}
    stock = by_name.pop(RECIPE, None)
    if stock is None:
        return True
    rows = bench.rows(stock)
    same = True
    for name, contender in by_name.items():
        shared = min(contender.sizes[1], stock.sizes[1])
        names = {f"{number:06d}.jpg" for number in range(shared)}
        agreement = compare(bench.rows(contender), rows, names, FLOOR)
        print(f"{name} against the recipe: {agreement.describe()}\n", flush=True)
        same = same and not (contender.is_exact and agreement.different)
    return same


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_flags(parser, cores=2)
    parser.add_argument("--images", type=Path, help="a folder of photographs; default: drawn scenes")
    parser.add_argument("--size", action="append", choices=list(SIZES), help="default: 640x480")
    parser.add_argument("--only", action="append", help="a contender by name; the others are left out")
    parser.add_argument("--variant", action="append", default=[], help="batchdet with settings: NAME:field=value,…")
    parser.add_argument("--keep", type=Path, help="make the data sets and outputs in this new folder, and keep them")
    options = parser.parse_args(argv)
    pin(options.cores)
    with tempfile.TemporaryDirectory(prefix="batchdet-benchmark-") as made:
        folders = {size: (options.keep or Path(made)) / size for size in options.size or ["640x480"]}
        print(f"{describe_machine(options.cores)}\n")
        same = [_run_size(options, size, folder) for size, folder in folders.items()]
    return 0 if all(same) else 1


def _run_size(options: argparse.Namespace, size: str, folder: Path) -> bool:
    """One size of pictures; whether the detections are the same."""
    folder.mkdir(parents=True)
    jpegs = load_jpegs(options.images, size)
    step = max(1, len(jpegs) // CALIBRATION_IMAGES)
    weights = save_stand_in(as_tensors(jpegs[::step][:CALIBRATION_IMAGES]), folder / "stand-in.safetensors")
    entrants = contenders(weights, options.cores, read_variants(options.variant))
    factor = PICTURE_COST[size] * (QUICK_FACTOR if options.quick else 1)
    entrants = [one.scaled(factor) for one in entrants if not options.only or one.name in options.only]
    bench = Bench(folder, jpegs)
    results = measure_all(bench, entrants, 1 if options.quick else options.rounds)
    print(f"## {size}\n")
    show(results)
    same = check_rows(bench, entrants)
    for contender in entrants:
        if contender.is_batchdet:
            print(f"Stages of {contender.name}:\n```\n{bench.profile(contender)}\n```\n", flush=True)
    print_results(numbers(results, size))
    return same


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
