"""Detections a second that a comparison of two runs goes through, on one core, and the memory it takes.

Both runs label the same images: in the second, boxes and scores are jittered and some detections are gone.
Read from Parquet on a local disk, joined, matched, and written as Parquet.

Run: OMP_NUM_THREADS=1 python -m tests.benchmarks.diff
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from batchdet.analysis.changes import write_changes
from batchdet.analysis.config import CompareConfig, DiffConfig
from batchdet.records import LabelledImage, Shard
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.schema import DETECTIONS_ENCODING, IMAGES_ENCODING, RUNS, RUNS_ENCODING, FileStamp, encode_table
from batchdet.storage.tables import shard_tables
from tests.benchmarks.parquet import CATEGORIES, NOW, made_shard
from tests.benchmarks.report import pin, print_results, print_table

EARLIER, LATER = "20260101T000000Z-00000000", "20260102T000000Z-00000000"
THRESHOLD = 0.25
SHARD_IMAGES = 4096


def shown(image: LabelledImage) -> LabelledImage:
    """The image with about half of its detections accepted."""
    return replace(image, accepted=image.scores > THRESHOLD)


def jittered(image: LabelledImage, draw: np.random.Generator) -> LabelledImage:
    """The image as a slightly other model labels it."""
    kept = draw.uniform(size=len(image.scores)) < 0.95
    scores = np.clip(image.scores[kept] + draw.normal(0, 0.02, kept.sum()), 0.05, 1).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    boxes = image.boxes[kept][order] + draw.normal(0, 0.5, (len(order), 4)).astype(np.float32)
    return replace(
        image, boxes=boxes, scores=scores[order], labels=image.labels[kept][order], accepted=scores[order] > THRESHOLD
    )


def write_run(output: Store, run_id: str, shards: Iterable[tuple[Shard, Sequence[LabelledImage]]]) -> int:
    """Commit shards and close the run; its accepted detections."""
    stamp = FileStamp(run_id, "sha256:0", "sha256:0")
    accepted = number = 0
    for place, (shard, images) in enumerate(shards):
        tables = shard_tables(shard, images, CATEGORIES, NOW)
        name = f"run_id={run_id}/shard-{place:05d}.parquet"
        output.write_bytes(f"detections/{name}", encode_table(tables.detections, DETECTIONS_ENCODING, stamp))
        output.write_bytes(f"images/{name}", encode_table(tables.images, IMAGES_ENCODING, stamp))
        accepted += sum(int(image.accepted.sum()) for image in images)
        number += len(images)
    row = dict.fromkeys(RUNS.names, "")
    row |= {"run_id": run_id, "status": "complete", "started_at": NOW, "finished_at": NOW, "categories": CATEGORIES}
    row |= {"policy": "{}", "config": "{}", "versions": "{}"}
    row |= {field.name: 0 for field in RUNS if pa.types.is_integer(field.type)} | {"num_labelled": number}
    table = pa.Table.from_pylist([row | {"images_per_second": 1.0}], schema=RUNS)
    output.write_bytes(f"runs/{run_id}.parquet", encode_table(table, RUNS_ENCODING, stamp))
    return accepted


def made_shards(images: int, mean_detections: float, is_second: bool) -> Iterator[tuple[Shard, list[LabelledImage]]]:
    """The shards of a run, one after another in the order of their URIs."""
    for number in range(images // SHARD_IMAGES):
        shard, labelled = made_shard(SHARD_IMAGES, mean_detections, number)
        draw = np.random.default_rng(1000 + number)
        labelled = [jittered(image, draw) for image in labelled] if is_second else [shown(image) for image in labelled]
        refs = [replace(image.ref, uri=f"s3://photos/{number:05d}/{image.ref.uri[5:]}") for image in labelled]
        images_of = [replace(image, ref=ref) for image, ref in zip(labelled, refs, strict=True)]
        yield replace(shard, images=tuple(refs)), images_of


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16 * SHARD_IMAGES)
    parser.add_argument("--detections", type=float, default=20.0, help="stored detections an image")
    parser.add_argument("--memory-mib", type=int, default=512)
    options = parser.parse_args(argv)
    pin(1)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        output = open_store(f"{folder}/labels", {})
        made = [
            write_run(output, run, made_shards(options.images, options.detections, run == LATER))
            for run in (EARLIER, LATER)
        ]
        config = DiffConfig(compare=CompareConfig(memory_mib=options.memory_mib))
        resident = peak_mib()
        begun, cpu = time.perf_counter(), time.process_time()
        summary = write_changes(output, EARLIER, LATER, config, open_store(f"{folder}/changes", {}))
        wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    stored = int(options.images // SHARD_IMAGES * SHARD_IMAGES * options.detections * 2)
    columns = ("images", "stored, both runs", "accepted, both runs", "CPU s", "wall s", "accepted/s a core", "peak MiB")
    accepted = sum(made)
    cells = [f"{summary['images']['relabelled']:,}", f"{stored:,}", f"{accepted:,}", f"{cpu:.1f}", f"{wall:.1f}"]
    print_table(columns, [[*cells, f"{accepted / cpu:,.0f}", f"{peak_mib():.0f} ({resident:.0f} before)"]])
    kinds = ("added", "removed", "moved", "rescored", "reclassed", "unchanged")
    print_table(kinds, [[f"{summary['changes'][kind]:,}" for kind in kinds]])
    print_results({"detections compared a second": accepted / cpu, "peak MiB": peak_mib()})


def peak_mib() -> float:
    """Most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
