"""Client CPU to read small objects of S3, by batchdet and by s3fs as it comes.

Run: python -m tests.benchmarks.reads
The server is another process and answers at once; rounds are interleaved. Knows no images.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import fsspec

from batchdet.records import EncodedImage, ImageRef
from batchdet.storage.reader import BlockReader
from tests.benchmarks.object_server import object_server
from tests.benchmarks.report import print_results

BUCKET = "photos"
OURS, SETTLED, STOCK = "batchdet (obstore)", "batchdet (s3fs, one request)", "s3fs as it comes"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


def read_blocks(options: Mapping[str, object], paths: Sequence[str], block: int) -> None:
    """Read as a labeller does, block after block."""
    reader = BlockReader(options)
    for begin in range(0, len(paths), block):
        outcomes = reader.fetch([ImageRef(f"s3://{path}") for path in paths[begin : begin + block]])
        if not all(isinstance(outcome, EncodedImage) for outcome in outcomes):
            raise RuntimeError(f"cannot read: {outcomes[0]}")


def read_one_by_one(endpoint: str, paths: Sequence[str]) -> None:
    """Read with `s3fs.cat_file`, nothing set."""
    fs = fsspec.filesystem("s3", endpoint_url=endpoint)
    for path in paths:
        fs.cat_file(path)


def measure(endpoint: str, objects: int, rounds: int, block: int) -> dict[str, list[float]]:
    """Process CPU milliseconds an object, by contender and round."""
    paths = [f"{BUCKET}/2026/camera-{number % 97:02d}/IMG_{number:08d}.jpg" for number in range(objects)]
    # SSE options have no translation, so that one reads through s3fs.
    untranslated = {"endpoint_url": endpoint, "s3_additional_kwargs": {"ExpectedBucketOwner": "1"}}
    contenders: dict[str, Callable[[], None]] = {
        STOCK: partial(read_one_by_one, endpoint, paths),
        SETTLED: partial(read_blocks, untranslated, paths, block),
        OURS: partial(read_blocks, {"endpoint_url": endpoint}, paths, block),
    }
    costs: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, read in contenders.items():
            begun = time.process_time()
            read()
            if turn:  # the first one connects
                costs[name].append((time.process_time() - begun) / objects * 1e3)
    return costs


def table(costs: Mapping[str, Sequence[float]]) -> str:
    """The costs as Markdown."""
    stock = statistics.median(costs[STOCK])
    lines = ["| reader | CPU ms/object: median | min | max | s3fs as it comes over it |", "|---|---|---|---|---|"]
    for name, seen in costs.items():
        middle = statistics.median(seen)
        lines.append(f"| {name} | {middle:.3f} | {min(seen):.3f} | {max(seen):.3f} | {stock / middle:.1f} |")
    return "\n".join(lines)


def results(costs: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Numbers for the goals; that an image takes one request is counted by a test, `tests/storage/test_objects.py`."""
    return {"CPU / s3fs default": statistics.median(costs[OURS]) / statistics.median(costs[STOCK])}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=115_000)
    parser.add_argument("--block", type=int, default=128, help="images that are read at once")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    os.environ.update(ENVIRONMENT)
    with object_server(options.bytes) as endpoint:
        costs = measure(endpoint, options.objects, options.rounds, options.block)
    print(table(costs))
    print_results(results(costs))


if __name__ == "__main__":
    main()
