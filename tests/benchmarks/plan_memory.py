"""Plan a made listing of N keys and print peak memory and keys a second: `python -m tests.benchmarks.plan_memory`.

Knows no images: the listing is computed, the output is a temporary folder.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from batchdet.config import PlanConfig
from batchdet.records import InputSpec, ModelInfo
from batchdet.storage.filesystem import open_store
from batchdet.storage.plan import PlanHeader, new_run_id
from batchdet.storage.planning import make_plan
from batchdet.storage.schema import KNOWN, LISTING

BATCH = 10_000
MODEL = ModelInfo(
    "torchvision:none", "none", ("__background__", "thing"), "sha256:0",
    InputSpec((320, 320), 320, 320, 1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
)  # fmt: skip


def made_listing(keys: int, changed_every: int = 0) -> Iterator[pa.RecordBatch]:
    """A listing in scattered order, with keys of about 80 bytes and etags of 32."""
    for begin in range(0, keys, BATCH):
        numbers = np.arange(begin, min(begin + BATCH, keys), dtype=np.uint64)
        scattered = (numbers * np.uint64(2_654_435_761)) % np.uint64(1 << 32)
        changed = (numbers % np.uint64(changed_every) == 0) if changed_every else np.zeros(len(numbers), bool)
        yield pa.record_batch(
            [
                pa.array(
                    [
                        f"s3://photos-eu-west/2026/camera-{n % 97:02d}/trap/{n:010d}/IMG_{n:012d}.JPG"
                        for n in scattered.tolist()
                    ]
                ),
                pa.array([f"{n:030x}{int(c):02x}" for n, c in zip(scattered.tolist(), changed.tolist(), strict=True)]),
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
        yield pa.RecordBatch.from_arrays([*batch.columns, status, run], schema=KNOWN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--known", type=int, default=0)
    options = parser.parse_args()
    before = peak_mib()
    with tempfile.TemporaryDirectory() as folder:
        header = PlanHeader(
            new_run_id(datetime.now(UTC)), "made", None, datetime.now(UTC), MODEL, "{}", "sha256:0", "{}", "{}"
        )
        listing = made_listing(options.keys, changed_every=10 if options.known else 0)
        begun = time.perf_counter()
        plan = make_plan(open_store(folder, {}), header, listing, made_known(options.known), PlanConfig())
        seconds = time.perf_counter() - begun
    print(json.dumps({
        "keys": options.keys, "known": options.known, "shards": plan.num_shards, "seconds": round(seconds, 1),
        "keys_per_second": round(options.keys / seconds), "peak_mib": round(peak_mib()),
        "peak_mib_before": round(before),
        "num_new": plan.counts.num_new, "num_changed": plan.counts.num_changed,
        "num_failed_retry": plan.counts.num_failed_retry, "num_unchanged": plan.counts.num_unchanged,
    }))  # fmt: skip


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
