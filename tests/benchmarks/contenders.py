"""The ways to label a folder of pictures that are measured against each other. Knows their commands, not the clock."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.stand_in import ARCHITECTURE, CATEGORIES, FLOOR

IMAGES_PER_SHARD = 50
RECIPE, THRESHOLD_SET, LOADER, ON_RAY, WITHOUT_RAY, NETWORK = (
    "recipe",
    "recipe, threshold set",
    "DataLoader, threshold set",
    "batchdet --ray local",
    "batchdet --ray off",
    "network alone",
)
PICTURE_COST = {"640x480": 1.0, "1920x1080": 0.5, "4000x3000": 0.15}
"""How many pictures of a size take about as long as one of 640×480, so that all data sets take about the same time."""

Command = Callable[[Path, Path], list[str]]


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to label.

    Attributes:
        sizes: images of the small and the large data set; both keep every process busy to the end.
        command: from the folders of images and output.
        is_batchdet: its output has batchdet's layout.
        is_exact: its detections must be the recipe's.
    """

    name: str
    sizes: tuple[int, int]
    command: Command
    is_batchdet: bool = False
    is_exact: bool = True

    def scaled(self, factor: float) -> "Contender":
        """The same on data sets of another size; shards stay whole."""
        step = 10
        small, large = (max(step, round(size * factor / step) * step) for size in self.sizes)
        return Contender(self.name, (small, max(large, small + step)), self.command, self.is_batchdet, self.is_exact)


def contenders(weights: Path, cores: int, variants: Mapping[str, Sequence[str]]) -> list[Contender]:
    """The contenders, with data sets of 640×480 that take each about half a minute on two cores.

    Args:
        weights: of the stand-in model.
        cores: for all processes of a contender together.
        variants: of batchdet, beside the plain one: settings (`field=value`) by name.
    """

    def recipe(module: str, *flags: str) -> Command:
        script = ["-m", f"tests.benchmarks.{module}"]
        return lambda images, output: [*script, str(images), str(output), str(weights), "--cpus", str(cores), *flags]

    def batchdet(ray: str, settings: Sequence[str] = ()) -> Command:
        return lambda images, output: _batchdet(images, output, weights, ray, cores, settings)

    def network(images: Path, _output: Path) -> list[str]:
        count = len(list(images.iterdir()))
        return ["-m", "tests.benchmarks.forward", str(weights), str(count), "--processes", str(cores)]

    threshold = ("--score-threshold", str(FLOOR))
    plain = [
        Contender(RECIPE, (60, 300), recipe("recipe")),
        Contender(THRESHOLD_SET, (100, 600), recipe("recipe", *threshold)),
        Contender(LOADER, (100, 600), recipe("loader", *threshold)),
        Contender(ON_RAY, (200, 1400), batchdet("local"), is_batchdet=True),
        Contender(WITHOUT_RAY, (200, 1400), batchdet("off"), is_batchdet=True),
        Contender(NETWORK, (200, 1400), network),
    ]
    return plain + [
        Contender(f"{ON_RAY}, {name}", (200, 1400), batchdet("local", settings), is_batchdet=True, is_exact=False)
        for name, settings in variants.items()
    ]


def read_variants(texts: Sequence[str]) -> dict[str, list[str]]:
    """`NAME:field=value,field=value` as settings by name."""
    parted = (text.partition(":") for text in texts)
    return {name: settings.split(",") for name, _, settings in parted}


def _batchdet(images: Path, output: Path, weights: Path, ray: str, cores: int, settings: Sequence[str]) -> list[str]:
    fixed = {
        "model.architecture": ARCHITECTURE,
        "model.categories": json.dumps(CATEGORIES),
        "model.score_floor": FLOOR,
        "plan.images_per_shard": IMAGES_PER_SHARD,
        "cluster.gpus_per_labeller": 0,
        "cluster.labellers": cores,
    }
    flags = [f"--set={text}" for text in (*(f"{name}={value}" for name, value in fixed.items()), *settings)]
    places = ["--source", str(images), "--output", str(output), "--model", str(weights)]
    return ["-m", "batchdet", "label", *places, "--ray", ray, *flags]
