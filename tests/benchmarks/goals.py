"""Goals beside what the newest notes measured: met, missed or not measured. Measures nothing itself.

A part prints its numbers by name in a JSON block (`report.print_results`); the goals ask for them by note and name.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.benchmarks.report import print_table, read_results

HERE = Path(__file__).parent
RECIPE, TUNED = "recipe", "recipe, threshold set"
OURS, FAST = "batchdet --ray local", "batchdet --ray local, fast"


@dataclass(frozen=True, slots=True)
class Goal:
    """One number to reach.

    Attributes:
        part: whose note has it.
        name: in the note's results.
        relation: how the number must lie to the bound.
        ceiling: in the note's results, what the hardware it was made on allows at most; empty where nobody knows.
    """

    what: str
    part: str
    name: str
    relation: Literal[">=", "<="]
    bound: float
    ceiling: str = ""

    def is_met(self, value: float) -> bool:
        """Whether the number reaches it."""
        return bool({">=": operator.ge, "<=": operator.le}[self.relation](value, self.bound))


def _end_to_end(size: str, ours: str, peer: str, bound: float) -> Goal:
    return Goal(f"{size}, {ours} / {peer}", "end_to_end", f"{size}: {ours} / {peer}", ">=", bound)


def _one_core(size: str, decode: str, what: str, bound: float) -> Goal:
    ceiling = f"{size} {decode}: loop / multiplications" if what.startswith("loop") else ""
    return Goal(f"one core, {size}, {decode}: {what}", "one_core", f"{size} {decode}: {what}", ">=", bound, ceiling)


GOALS = (
    _end_to_end("640x480", OURS, RECIPE, 13),
    _end_to_end("640x480", OURS, TUNED, 6),
    _end_to_end("640x480", FAST, RECIPE, 15),
    _end_to_end("640x480", FAST, TUNED, 6.5),
    _end_to_end("1920x1080", FAST, TUNED, 11),
    _end_to_end("4000x3000", FAST, TUNED, 12),
    *(
        _one_core(size, "exact", "loop / batchdet", bound)
        for size, bound in (("640x480", 8), ("1920x1080", 8), ("4000x3000", 10))
    ),
    *(
        _one_core(size, "fast", "share of the network's speed", bound)
        for size, bound in (("640x480", 0.88), ("1920x1080", 0.63), ("4000x3000", 0.27))
    ),
    Goal("Ray over --ray off, CPU an image", "end_to_end", "640x480: CPU of Ray over none", "<=", 0.05),
    Goal("SSD post-processing, batch 1", "postprocess", "ssd batch 1: stock / ours", ">=", 5),
    Goal("SSD post-processing, batch 32", "postprocess", "ssd batch 32: stock / ours", ">=", 10),
    Goal("post-processing never slower", "postprocess", "least: stock / ours", ">=", 1),
    Goal("RPN, ResNet-50, 800 px", "postprocess", "rpn: stock / ours", ">=", 7),
    Goal("RoI heads", "postprocess", "roi: stock / ours", ">=", 7),
    Goal(
        "exact decode and resize over Pillow and torchvision's transform, 640x480",
        "prepare",
        "640x480: Pillow and transform / exact",
        ">=",
        2,
    ),
    Goal(
        "exact decode and resize over Pillow and torchvision's transform, 1920x1080",
        "prepare",
        "1920x1080: Pillow and transform / exact",
        ">=",
        4,
    ),
    Goal(
        "exact decode and resize over Pillow and torchvision's transform, 4000x3000",
        "prepare",
        "4000x3000: Pillow and transform / exact",
        ">=",
        9,
    ),
    Goal("client CPU an object over s3fs's default", "reads", "CPU / s3fs default", "<=", 0.125),
    Goal("Parquet, detections/s a core", "parquet", "detections a second", ">=", 7e6),
    Goal("Parquet, bytes a detection", "parquet", "bytes a detection", "<=", 20),
    Goal("plan, keys/s a core", "plan", "keys a second", ">=", 500_000),
    Goal("plan, MiB for ten million keys", "plan", "peak MiB", "<=", 1024),
    Goal("refilter, detections/s a core", "refilter", "least: detections a second", ">=", 1e6),
    Goal("driver's CPU with 10 times the images", "scale", "driver CPU with 10 times the images", "<=", 1.2),
    *(
        Goal(f"one H200, device side, fp16, images/s: {name}", "gpu", f"{name} fp16: images a second", ">=", bound)
        for name, bound in (
            ("ssd300_vgg16", 5000),
            ("fasterrcnn_resnet50_fpn", 1000),
            ("fasterrcnn_resnet50_fpn_v2", 500),
            ("ssdlite320_mobilenet_v3_large", 20_000),
        )
    ),
    *(
        Goal(f"one H200, JPEG to Parquet / device side: {name}", "gpu", f"{name}: whole / device side", ">=", 0.9)
        for name in ("ssd300_vgg16", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2")
    ),
)


def newest_results(folder: Path, part: str) -> dict[str, float]:
    """Numbers of a part's notes by name, newer ones over older; notes carry their date in the name."""
    found: dict[str, float] = {}
    for note in sorted(folder.glob(f"{part}_*.md"), key=lambda path: path.stem.rpartition("_")[2]):
        found |= read_results(note.read_text(encoding="utf-8"))
    return found


def show(folder: Path) -> int:
    """Print the table; 3 if a goal is missed."""
    results = {part: newest_results(folder, part) for part in {goal.part for goal in GOALS}}
    rows, missed = [], False
    for goal in GOALS:
        value = results[goal.part].get(goal.name)
        verdict = "not measured" if value is None else "met" if goal.is_met(value) else "missed"
        missed |= verdict == "missed"
        ceiling = results[goal.part].get(goal.ceiling)
        shown = ["" if number is None else f"{number:,.4g}" for number in (value, ceiling)]
        rows.append([goal.what, f"{goal.relation} {goal.bound:,g}", *shown, verdict])
    print_table(("goal", "bound", "measured", "ceiling here", "verdict"), rows)
    return 3 if missed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of the notes beside this file; the exit code."""
    if argv:
        raise SystemExit("goals takes no arguments")
    return show(HERE)


if __name__ == "__main__":
    raise SystemExit(main())
