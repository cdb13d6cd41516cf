"""Detections a second that `refilter` and `compact` read, judge and write, on one core, and their memory. Knows no S3.

The output lies in a temporary folder: shards of made images as `label` commits them, about 20 stored detections each.
CPU is this process's, of all its threads; a process of its own measures each command, so that memory is its own.

Run: OMP_NUM_THREADS=1 python -m tests.benchmarks.rewrite refilter|compact
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from batchdet.compaction import compact
from batchdet.config import PolicyConfig, canonical_json
from batchdet.records import InputSpec, ModelInfo, PlanCounts
from batchdet.refiltering import refilter
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import PlanHeader, new_run_id
from batchdet.storage.planning import new_plan, write_plan
from batchdet.storage.schema import LISTING
from tests.benchmarks.parquet import CATEGORIES, made_shard
from tests.benchmarks.report import pin, print_results, print_table

PER_SHARD = 4096
DETECTIONS = 20.0
POLICIES = {
    "thresholds": PolicyConfig(score_threshold=0.6),
    "thresholds, second NMS, top-k": PolicyConfig(
        score_threshold=0.3, iou_threshold=0.5, max_detections=100, min_box_side=4
    ),
}
MODEL = ModelInfo("made", "made", CATEGORIES, "sha256:0", InputSpec((320, 320), 320, 320, 1, (0.0,) * 3, (1.0,) * 3))


@dataclass(frozen=True, slots=True)
class Cost:
    """What one command took; resident MiB at most, and before it began."""

    detections: int
    cpu_s: float
    wall_s: float
    peak_mib: float
    before_mib: float


def fill(output: Store, nights: int, shards: int) -> int:
    """Complete runs of made images, of every night; stored detections in all."""
    ledger, total = Ledger(output), 0
    for night in range(nights):
        run_id = new_run_id(datetime.now(UTC) - timedelta(days=30), ledger.run_ids())
        policy = PolicyConfig()
        config = canonical_json({"model": {"score_floor": 0.05}, "policy": policy.model_dump(mode="json")})
        header = PlanHeader(
            run_id, "made", None, datetime.now(UTC), MODEL, policy.canonical, policy.digest, config, "{}"
        )
        # A shard a stretch of URIs, as a plan cuts them; nights lie across one another.
        made = [made_shard(PER_SHARD, DETECTIONS, night * shards + number) for number in range(shards)]
        parts = [
            [replace(image, ref=replace(image.ref, uri=f"s3://photos/{number:04d}/{image.ref.uri[5:]}-{night}"),
                     facts=replace(image.facts, content_digest="sha256:0")) for image in images]
            for number, (_, images) in enumerate(made)
        ]  # fmt: skip
        parts = [sorted(part, key=lambda image: image.ref.uri.encode()) for part in parts]
        count = shards * PER_SHARD
        plan = new_plan(header, PlanCounts(count, count, 0, 0, 0), shards, PER_SHARD)
        write_plan(output, plan, (_listed(part) for part in parts))
        for number, part in enumerate(parts):
            shard = replace(made[number][0], run_id=run_id, shard_id=number, images=tuple(one.ref for one in part))
            ledger.commit(plan, shard, part)
            total += sum(len(image.scores) for image in part)
        ledger.close(ledger.closing_row(plan, "complete", 1.0))
    return total


def _listed(part: Sequence[object]) -> pa.RecordBatch:
    rows = [{"image_uri": image.ref.uri} for image in part]  # type: ignore[attr-defined]
    return pa.RecordBatch.from_pylist(rows, schema=LISTING)


def measure(detections: int, command: Callable[[], object]) -> Cost:
    """The command, once."""
    before, cpu, wall = peak_mib(), time.process_time(), time.perf_counter()
    command()
    return Cost(detections, time.process_time() - cpu, time.perf_counter() - wall, peak_mib(), before)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def commands(name: str, output: Store) -> dict[str, Callable[[], object]]:
    """What is measured, by how it is called in the table."""
    if name == "compact":
        return {"current rows of all nights": lambda: compact(output, "current", lambda _: None)}
    return {what: lambda to=policy: refilter(output, to, lambda _: None) for what, policy in POLICIES.items()}  # type: ignore[misc]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("refilter", "compact"))
    parser.add_argument("--nights", type=int, default=4, help="complete runs, of different images")
    parser.add_argument("--shards", type=int, default=8, help=f"of each night, of {PER_SHARD} images")
    options = parser.parse_args(argv)
    pin(1)
    pa.set_cpu_count(1)
    np.random.seed(0)
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as folder:
        output = open_store(str(Path(folder) / "labels"), {})
        total = fill(output, options.nights, options.shards)
        for what, command in commands(options.command, output).items():
            cost = measure(total, command)
            rows.append(
                [
                    what,
                    f"{cost.detections:,}",
                    f"{cost.detections / cost.cpu_s / 1e6:.2f}",
                    f"{cost.cpu_s:.1f}",
                    f"{cost.wall_s:.1f}",
                    f"{cost.peak_mib:.0f}",
                    f"{cost.before_mib:.0f}",
                ]
            )
            results[f"{what}: detections a second"] = cost.detections / cost.cpu_s
    columns = (options.command, "stored detections", "M detections/s a core", "CPU s", "wall s", "peak MiB", "before")
    print_table(columns, rows)
    print_results(results | {"least: detections a second": min(results.values())})


if __name__ == "__main__":
    main()
