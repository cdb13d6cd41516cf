"""Detections a second, columns to Parquet bytes, on one core, and bytes a detection. Knows no files and no model.

Run: OMP_NUM_THREADS=1 python -m tests.benchmarks.parquet
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from batchdet.records import ImageFacts, ImageRef, LabelledImage, Shard
from batchdet.storage.schema import DETECTIONS_ENCODING, FileStamp, encode_table
from batchdet.storage.tables import shard_tables
from tests.benchmarks.report import print_results, print_table

CATEGORIES = ("__background__", *(f"category {number:02d}" for number in range(1, 91)))
STAMP = FileStamp("20260101T000000Z-00000000", "sha256:0", "sha256:0")
MEANS = (2.0, 7.0, 20.0)
"""Detections an image; the goals are for the last."""
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def made_shard(images: int, mean_detections: float, number: int = 0) -> tuple[Shard, list[LabelledImage]]:
    """A shard with detections as a detector leaves them: few categories an image, most scores low, boxes to fractions
    of a pixel."""
    draw = np.random.default_rng(number)
    refs = [
        ImageRef(f"s3://photos-eu-west/2026/camera-{n % 97:02d}/2026-03-{n % 28 + 1:02d}/IMG_{n:012d}.JPG")
        for n in sorted(draw.choice(10_000_000, images, replace=False).tolist())
    ]
    shard = Shard(STAMP.run_id, number, tuple(sorted(refs, key=lambda ref: ref.uri)))
    return shard, [_labelled(ref, draw, mean_detections) for ref in shard.images]


def _labelled(ref: ImageRef, draw: np.random.Generator, mean_detections: float) -> LabelledImage:
    count = int(draw.poisson(mean_detections))
    corner, side = draw.uniform(0, 1, (count, 2)), draw.beta(1, 4, (count, 2)) + 0.02
    size = np.array([640, 480])
    boxes = np.concatenate([corner * size, np.minimum(corner + side, 1) * size], axis=1).astype(np.float32)
    scores = -np.sort(-draw.beta(1, 3, count).astype(np.float32)) * np.float32(0.95) + np.float32(0.05)
    labels = draw.choice(draw.integers(1, len(CATEGORIES), 5), count).astype(np.int64)
    facts = ImageFacts(width=640, height=480, exif_orientation=1, decoder="simplejpeg", size_bytes=115_000)
    return LabelledImage(ref, facts, boxes, scores, labels, scores > 0.5, False)


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over rounds of process CPU.

    Attributes:
        a_second: detections encoded.
        building_us: to make the columns of both tables, an image.
        nbytes: of Parquet, a detection.
    """

    images: int
    rows: int
    a_second: float
    building_us: float
    nbytes: float


def measure(images: int, mean_detections: float, rounds: int) -> Cost:
    """Build and encode a made shard."""
    shard, outcomes = made_shard(images, mean_detections)
    building, encoding, data = [], [], b""
    for _ in range(rounds):
        begun = time.process_time()
        table = shard_tables(shard, outcomes, CATEGORIES, NOW).detections
        middle = time.process_time()
        data = encode_table(table, DETECTIONS_ENCODING, STAMP)
        building.append(middle - begun)
        encoding.append(time.process_time() - middle)
    rows = table.num_rows
    building_us = statistics.median(building) / images * 1e6
    return Cost(images, rows, rows / statistics.median(encoding), building_us, len(data) / rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(argv)
    pa.set_cpu_count(1)
    costs = [measure(options.images, mean, options.rounds) for mean in MEANS]
    columns = ("images", "detections/image", "rows", "encoded, M rows/s", "both tables, µs/image", "bytes/detection")
    print_table(
        columns,
        [
            [
                str(one.images),
                f"{one.rows / one.images:.1f}",
                f"{one.rows:,}",
                f"{one.a_second / 1e6:.1f}",
                f"{one.building_us:.1f}",
                f"{one.nbytes:.2f}",
            ]
            for one in costs
        ],
    )
    print_results({"detections a second": costs[-1].a_second, "bytes a detection": costs[-1].nbytes})


if __name__ == "__main__":
    main()
