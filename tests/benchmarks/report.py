"""What the parts of the benchmark share: the machine in words, spreads, and results a later command can read."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

VERSIONS = ("torch", "torchvision", "ray", "pyarrow", "pillow", "numpy", "openvino", "onnxruntime")
_RESULTS = re.compile(r"^```json\n(\{.*?\})\n```$", re.MULTILINE | re.DOTALL)


def spread(values: Sequence[float], form: str = ".2f", unit: str = "") -> str:
    """The median, and in brackets the least and the greatest."""
    if len(values) == 1:
        return f"{values[0]:{form}}{unit}"
    return f"{median(values):{form}}{unit} ({min(values):{form}}–{max(values):{form}})"


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """Ratios of runs that took turns."""
    return [one / other for one, other in zip(slow, fast, strict=True)]


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table."""
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def print_results(results: Mapping[str, float]) -> None:
    """Numbers by name, for `goals`."""
    rounded = {name: float(f"{value:.4g}") for name, value in results.items()}
    print(f"```json\n{json.dumps(rounded, indent=1)}\n```", flush=True)


def read_results(note: str) -> dict[str, float]:
    """Numbers by name of a note that `print_results` was part of."""
    found: dict[str, float] = {}
    for block in _RESULTS.findall(note):
        found |= json.loads(block)
    return found


def add_common_flags(parser: argparse.ArgumentParser, cores: int) -> None:
    """`--cores`, `--rounds`, `--quick`."""
    parser.add_argument("--cores", type=int, default=cores, help="the process is pinned to so many")
    parser.add_argument("--rounds", type=int, default=3, help="contenders take turns so often")
    parser.add_argument("--quick", action="store_true", help="so little work that only the detections mean anything")


def pin(cores: int) -> None:
    """Let this process and all it starts have so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def processor() -> str:
    """Name of the processor."""
    return _cpu_field("model name") or platform.machine()


def _cpu_field(name: str) -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def hardware_slug(cores: int) -> str:
    """Machine as part of a file name, `2-core-amd-epyc`."""
    words = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*", " ", processor().lower())
    return "-".join([f"{cores}-core", *re.findall(r"[a-z0-9]+", words)[:3]])


def today() -> str:
    """Year, month and day."""
    return datetime.now(UTC).date().isoformat()


def describe_machine(cores: int) -> str:
    """Hardware, versions and date in one line."""
    versions = []
    for name in VERSIONS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    python = f"Python {platform.python_version()}"
    family = _cpu_field("cpu family")
    return (
        f"{cores} cores of {processor()}{family and f' (family {family})'}, {', '.join([python, *versions])}, {today()}"
    )
