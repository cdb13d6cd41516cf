"""Rows of an output, read back for comparison."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.servers.s3 import Bucket

WHEN = ("labelled_at",)
"""Columns that say when an image was labelled, not what was found."""


def rows_of(output: Path, table: str) -> pa.Table:
    """Every row of `images`, `detections` or `runs`, sorted, without the columns that say when."""
    files = sorted(output.glob(f"{table}/**/*.parquet"))
    read = pa.concat_tables(pq.read_table(path, partitioning=None) for path in files)
    if table == "runs":
        return read.sort_by("run_id")
    keys = [("image_uri", "ascending")] + ([("detection_index", "ascending")] if table == "detections" else [])
    return read.drop_columns([name for name in WHEN if name in read.column_names]).sort_by(keys)


def num_committed(output: Path) -> int:
    """Commit markers of a local output."""
    return len(list(output.glob("images/run_id=*/shard-*.parquet")))


def assert_same_rows(output: Path, expected: Path) -> None:
    """Bit for bit the same images and detections, each image once."""
    for table in ("images", "detections"):
        got, wanted = rows_of(output, table), rows_of(expected, table)
        assert got.num_rows == wanted.num_rows, table
        assert got.equals(wanted), table
    uris = rows_of(output, "images")["image_uri"].to_pylist()
    assert len(uris) == len(set(uris))


def download(bucket: Bucket, prefix: str, folder: Path) -> Path:
    """An output on S3 as a local folder."""
    for key in bucket.keys(prefix):
        path = folder / key.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.get(key))
    return folder


def text_of(output: Path) -> str:
    """Every value, key and metadata entry of a local output as one text, Parquet uncompressed."""
    texts = []
    for path in output.rglob("*"):
        if path.suffix == ".parquet":
            table = pq.read_table(path, partitioning=None)
            texts += [str(path), str(table.schema.metadata), str(table.to_pylist())]
        elif path.is_file():
            texts += [str(path), path.read_text(errors="replace")]
    return "\n".join(texts)
