"""Plan a made listing of N keys: CPU, keys a second and peak memory. Knows no images; the output is a temporary folder.

Run: python -m tests.benchmarks.plan_memory
"""

import argparse
import collections
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchdet.config import PlanConfig
from batchdet.records import InputSpec, ModelInfo, PlanCounts
from batchdet.storage.filesystem import open_store
from batchdet.storage.plan import PlanHeader, new_run_id
from batchdet.storage.planning import make_plan
from batchdet.storage.schema import KNOWN, LISTING
from tests.benchmarks.report import print_results

BATCH = 10_000
MODEL = ModelInfo(
    "torchvision:none", "none", ("__background__", "thing"), "sha256:0",
    InputSpec((320, 320), 320, 320, 1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
)  # fmt: skip


def made_listing(keys: int, changed_every: int = 0) -> Iterator[pa.RecordBatch]:
    """A listing in scattered order, with keys of about 80 bytes and etags of 32, made column by column."""
    for begin in range(0, keys, BATCH):
        numbers = np.arange(begin, min(begin + BATCH, keys), dtype=np.uint64)
        scattered = (numbers * np.uint64(2_654_435_761)) % np.uint64(1 << 32)
        changed = (numbers % np.uint64(changed_every) == 0) if changed_every else np.zeros(len(numbers), bool)
        digits = pc.cast(pa.array(scattered), pa.string())
        camera = pc.utf8_lpad(pc.cast(pa.array(scattered % np.uint64(97)), pa.string()), 2, "0")
        trap, image, etag = (pc.utf8_lpad(digits, width, "0") for width in (10, 12, 30))
        yield pa.record_batch(
            [
                pc.binary_join_element_wise(
                    "s3://photos-eu-west/2026/camera-", camera, "/trap/", trap, "/IMG_", image, ".JPG", ""
                ),
                pc.binary_join_element_wise(etag, pc.if_else(pa.array(changed), "01", "00"), ""),
                pa.array(scattered.astype(np.int64)),
                pa.array(np.full(len(numbers), 1_767_225_600_000_000), pa.timestamp("us", tz="UTC")),
            ],
            schema=LISTING,
        )


def made_known(keys: int) -> Iterator[pa.RecordBatch]:
    """What a complete run over `made_listing` left behind, every 50th image failed."""
    for batch in made_listing(keys):
        rows = np.arange(batch.num_rows)
        status = pa.array(np.where(rows % 50 == 1, "failed", "labelled"))
        run = pa.array(["20260101T000000Z-00000000"] * batch.num_rows)
        stage = pa.array(np.full(batch.num_rows, "decode"), mask=rows % 50 != 1)
        failed = pa.array(np.where(rows % 50 == 1, 1, 0), pa.int32())
        yield pa.RecordBatch.from_arrays([*batch.columns, status, stage, failed, run], schema=KNOWN)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one plan took: `cpu_s` of all threads of this process, without the making of the listings; resident MiB."""

    keys: int
    known: int
    counts: PlanCounts
    cpu_s: float
    wall_s: float
    peak_mib: float
    before_mib: float


def measure(keys: int, known: int) -> Cost:
    """Plan a made listing against a made complete run of `known` images."""
    before = peak_mib()
    changed_every = 10 if known else 0
    begun = time.process_time()
    for batches in (made_listing(keys, changed_every), made_known(known)):
        collections.deque(batches, maxlen=0)
    making = time.process_time() - begun
    with tempfile.TemporaryDirectory() as folder:
        header = PlanHeader(
            new_run_id(datetime.now(UTC)), "made", None, datetime.now(UTC), MODEL, "{}", "sha256:0", "{}", "{}"
        )
        listing = made_listing(keys, changed_every)
        cpu, wall = time.process_time(), time.perf_counter()
        plan = make_plan(open_store(folder, {}), header, listing, made_known(known), PlanConfig())
        spent = time.process_time() - cpu - making, time.perf_counter() - wall
    return Cost(keys, known, plan.counts, *spent, peak_mib(), before)


def table(costs: Sequence[Cost]) -> str:
    """The costs as Markdown."""
    lines = [
        "| keys | known | planned | CPU µs/key | keys/s per core | wall s | peak MiB | of it before |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.keys:,} | {one.known:,} | {one.counts.num_planned:,} | {one.cpu_s / one.keys * 1e6:.2f} "
        f"| {one.keys / one.cpu_s:,.0f} | {one.wall_s:.1f} | {one.peak_mib:.0f} | {one.before_mib:.0f} |"
        for one in costs
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--known", type=int, help="plan against so many only; default: against none, then against all")
    options = parser.parse_args(argv)
    known = [0, options.keys] if options.known is None else [options.known]
    costs = [measure(options.keys, number) for number in known]
    print(table(costs))
    print_results({
        "keys a second": costs[0].keys / costs[0].cpu_s,
        "keys a second, against known": costs[-1].keys / costs[-1].cpu_s,
        "peak MiB": max(one.peak_mib for one in costs),
    })  # fmt: skip


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
