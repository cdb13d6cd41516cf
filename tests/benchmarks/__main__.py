"""All benchmarks, or parts by name: runs each, shows what it prints, and keeps it as a Markdown note.

`python -m tests.benchmarks` runs every part of `PARTS`; `python -m tests.benchmarks goals` compares the newest notes
with the goals. A note is named `[part]_[hardware]_[date].md`. `python -m tests.benchmarks.PART --help` has more flags.

Run: python -m tests.benchmarks [PART …] [--images DIR] [--quick] [--to DIR]
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import goals
from tests.benchmarks.report import describe_machine, hardware_slug, today

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Part:
    """One benchmark.

    Attributes:
        module: of `tests.benchmarks`, with a `main(argv)`.
        title: of its note.
        full, quick: arguments of a real run and of one that only shows that it works.
        takes_images: whether it measures on given photographs.
        minutes: a real run takes about so long on two cores.
    """

    module: str
    title: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)
    takes_images: bool = False
    minutes: int = 5


ALL_SIZES = ("--size=640x480", "--size=1920x1080", "--size=4000x3000")
PARTS = {
    "end_to_end": Part(
        "end_to_end",
        "From JPEG to Parquet, against peers",
        (*ALL_SIZES, "--variant=fast:reading.decode=fast"),
        takes_images=True,
        minutes=80,
    ),
    "one_core": Part(
        "one_core", "One core, from JPEG to columns", ("--decode=exact", "--decode=fast"), takes_images=True
    ),
    "prepare": Part("prepare", "Decode and resize, against torchvision's transform", quick=()),
    "postprocess": Part("postprocess", "Post-processing, against torchvision's"),
    "reads": Part("reads", "Small objects of S3", quick=("--objects=50", "--rounds=1")),
    "parquet": Part("parquet", "Detections to Parquet", quick=("--images=100", "--rounds=1")),
    "diff": Part("diff", "Two runs compared, box by box", quick=("--images=4096", "--detections=2"), minutes=1),
    "plan": Part("plan_memory", "Planning ten million keys", ("--keys=10000000",), ("--keys=20000",)),
    "refilter": Part(
        "rewrite",
        "Another policy over stored candidates",
        ("refilter",),
        ("refilter", "--nights=1", "--shards=1"),
        minutes=2,
    ),
    "compact": Part(
        "rewrite", "Nights into few large files", ("compact",), ("compact", "--nights=2", "--shards=1"), minutes=2
    ),
    "scale": Part("scale", "The driver of many labellers", minutes=10),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts named; the exit code is the worst of theirs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, goals; default: all")
    parser.add_argument("--images", type=Path, help="a folder of photographs; default: drawn scenes")
    parser.add_argument("--quick", action="store_true", help="only show that the parts work")
    parser.add_argument("--to", type=Path, help="where notes go; default: beside the benchmarks, with --quick nowhere")
    options = parser.parse_args(argv)
    folder = options.to or (None if options.quick else HERE)
    names = options.parts or [*PARTS, "goals"]
    unknown = [name for name in names if name not in (*PARTS, "goals")]
    if unknown:
        parser.error(f"no part {unknown[0]}; there are {', '.join(PARTS)} and goals")
    codes = []
    for name in names:
        print(f"# {name}", flush=True)
        codes.append(goals.show(folder or HERE) if name == "goals" else run_part(name, options, folder))
    return max(codes)


def run_part(name: str, options: argparse.Namespace, folder: Path | None) -> int:
    """Run one part in a process of its own and write its note to the folder; its exit code."""
    part = PARTS[name]
    arguments = [*(part.quick if options.quick else part.full)]
    if part.takes_images and options.images:
        arguments += ["--images", str(options.images)]
    started = time.monotonic()
    command = [sys.executable, "-m", f"tests.benchmarks.{part.module}", *arguments]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1]) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode == 0 and folder is not None:
        said = " ".join(["python -m", *command[2:]]).replace(str(options.images), "DIR")
        minutes = (time.monotonic() - started) / 60
        _write_note(folder, name, f"`{said}`, {minutes:.0f} minutes.", "".join(lines))
    return process.returncode


def _write_note(folder: Path, name: str, how: str, text: str) -> None:
    cores = len(os.sched_getaffinity(0))
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / f"{name}_{hardware_slug(cores)}_{today()}.md"
    note.write_text(f"# {PARTS[name].title}, {today()}\n\n{how} {describe_machine(cores)}.\n\n{text}", encoding="utf-8")
    print(f"{note}\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
