"""The tables' columns, their file metadata and how they are encoded. Knows no detector and no place to write to."""

from base64 import b64encode
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchdet.errors import OutputError, SchemaVersionError

SCHEMA_VERSION = 1
"""Version of the output layout; raised only by a change that old readers cannot read."""

UTC_TIMESTAMP = pa.timestamp("us", tz="UTC")
"""Type of every time in every table."""

_LISTED: dict[str, pa.DataType] = {
    "image_uri": pa.string(),
    "etag": pa.string(),
    "size_bytes": pa.int64(),
    "last_modified": UTC_TIMESTAMP,
}

LISTING = pa.schema(_LISTED)
"""What a listing knows of an image."""

KNOWN = pa.schema(
    {
        **_LISTED,
        "status": pa.string(),
        "failure_stage": pa.string(),
        "failed_runs": pa.int32(),
        "run_id": pa.string(),
    }
)
"""What a plan asks of the images that earlier runs ended with."""

_TWIN: dict[str, pa.DataType] = {
    "image_uri": pa.string(),
    "run_id": pa.string(),
    "shard_id": pa.int32(),
    "content_digest": pa.string(),
}

TWIN = pa.schema(_TWIN)
"""A labelled image that another may share its bytes with; field names are those of `records.Twin`."""

LABELLED_BYTES = pa.schema([*TWIN, pa.field("etag", pa.string()), pa.field("size_bytes", pa.int64())])
"""What a plan asks of the images that earlier runs labelled."""

PLANNED = pa.schema([*LISTING, pa.field("failed_runs", pa.int32()), pa.field("twins", pa.list_(pa.struct(list(TWIN))))])
"""A row of a plan's manifest; field names are those of `records.ImageRef`."""

_IMAGES: dict[str, pa.DataType] = {
    **_LISTED,
    "width": pa.int32(),
    "height": pa.int32(),
    "exif_orientation": pa.int8(),
    "status": pa.string(),
    "failure_stage": pa.string(),
    "failure_code": pa.string(),
    "failure_reason": pa.string(),
    "num_detections": pa.int32(),
    "num_candidates": pa.int32(),
    "hit_detection_cap": pa.bool_(),
    "content_digest": pa.string(),
    "decoder": pa.string(),
    "shard_id": pa.int32(),
    "labelled_at": UTC_TIMESTAMP,
    "copied_from": pa.string(),
    "failed_runs": pa.int32(),
}

IMAGES = pa.schema(_IMAGES)
"""One row per image of a run. A failed image has null counts: how many objects it shows is unknown, not zero."""

_DETECTIONS: dict[str, pa.DataType] = {
    "image_uri": pa.string(),
    "detection_index": pa.int32(),
    "label": pa.int32(),
    "category": pa.dictionary(pa.int32(), pa.string()),
    "score": pa.float32(),
    "xmin": pa.float32(),
    "ymin": pa.float32(),
    "xmax": pa.float32(),
    "ymax": pa.float32(),
    "image_width": pa.int32(),
    "image_height": pa.int32(),
    "accepted": pa.bool_(),
    "shard_id": pa.int32(),
}

DETECTIONS = pa.schema(_DETECTIONS)
"""One row per stored detection of a run, accepted or not."""

SHARD_DETECTIONS = DETECTIONS.set(0, pa.field("image_uri", pa.dictionary(pa.int32(), pa.string())))
"""`DETECTIONS` as a shard makes them: each URI once. Their file is one of `DETECTIONS`."""

_RUNS: dict[str, pa.DataType] = {
    "run_id": pa.string(),
    "status": pa.string(),
    "started_at": UTC_TIMESTAMP,
    "finished_at": UTC_TIMESTAMP,
    "source": pa.string(),
    "previous_run_id": pa.string(),
    "model": pa.string(),
    "architecture": pa.string(),
    "model_digest": pa.string(),
    "categories": pa.list_(pa.string()),
    "policy": pa.string(),
    "policy_digest": pa.string(),
    "config": pa.string(),
    "num_listed": pa.int64(),
    "num_labelled": pa.int64(),
    "num_empty": pa.int64(),
    "num_failed": pa.int64(),
    "num_unchanged": pa.int64(),
    "num_deleted": pa.int64(),
    "num_detections": pa.int64(),
    "images_per_second": pa.float64(),
    "versions": pa.string(),
}

RUNS = pa.schema(_RUNS)
"""One row per run; field names are those of `records.RunRow`."""

ADDED_COLUMNS = frozenset({"copied_from", "failed_runs"})
"""Columns that came into a table after its first release, by name: nullable, at the table's end, and missing in files
written before. To add one, name it in its table above and here; readers and views take files without it."""

_ARROW_KEY = b"ARROW:schema"
_VERSION_KEY = b"batchdet.schema_version"
BACKEND_KEY = b"batchdet.backend"
"""Metadata of a file: what computed its rows."""
ROW_GROUP_ROWS = 131_072
"""Rows of a row group: what a reader that prunes can skip."""


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Who wrote a file; goes into its key-value metadata.

    Attributes:
        backend: what computed the detections, its version and its arithmetic; None where nothing was computed.
    """

    run_id: str
    model_digest: str
    policy_digest: str
    backend: str | None = None

    def metadata(self) -> dict[bytes, bytes]:
        """The key-value metadata, schema version included."""
        found = {
            _VERSION_KEY: str(SCHEMA_VERSION).encode(),
            b"batchdet.run_id": self.run_id.encode(),
            b"batchdet.model_digest": self.model_digest.encode(),
            b"batchdet.policy_digest": self.policy_digest.encode(),
        }
        return found if self.backend is None else found | {BACKEND_KEY: self.backend.encode()}


@dataclass(frozen=True, slots=True)
class Encoding:
    """How one table lies in Parquet.

    Only encodings that every reader knows: byte stream split would make detections 7 % smaller, but Spark's vectorised
    reader refuses files that hold it.

    Attributes:
        dictionary: columns of few distinct values; a dictionary on floats costs size and speed.
        sorted_by: columns the rows are sorted by, all ascending.
        statistics: columns whose least and greatest value readers may skip rows by; None for all.
        level: of zstd.
    """

    dictionary: tuple[str, ...] = ()
    sorted_by: tuple[str, ...] = ()
    statistics: tuple[str, ...] | None = None
    level: int = 3


IMAGES_ENCODING = Encoding(
    dictionary=(
        "exif_orientation",
        "status",
        "failure_stage",
        "failure_code",
        "failure_reason",
        "decoder",
        "shard_id",
        "failed_runs",
    ),
    sorted_by=("image_uri",),
)
# Sorted by image, the rows of any part of a file hold scores and boxes of every size: their statistics skip nothing.
DETECTIONS_ENCODING = Encoding(
    dictionary=("image_uri", "label", "category"),
    sorted_by=("image_uri", "detection_index"),
    statistics=("image_uri", "detection_index", "label", "accepted"),
    level=1,
)
RUNS_ENCODING = Encoding()


def encode_table(table: pa.Table, encoding: Encoding, stamp: FileStamp) -> bytes:
    """The table as one Parquet file; equal tables and stamps give equal bytes."""
    sink = pa.BufferOutputStream()
    schema = DETECTIONS if table.schema.equals(SHARD_DETECTIONS) else table.schema
    # Parquet takes an Arrow dictionary as it is; that the column is one of strings to Arrow, too, is said here.
    with pq.ParquetWriter(sink, table.schema, store_schema=False, **writer_options(schema, encoding)) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        stamped = schema.with_metadata(stamp.metadata())
        metadata = stamp.metadata() | {_ARROW_KEY: b64encode(stamped.serialize())}
        writer.add_key_value_metadata(metadata)  # type: ignore[arg-type]  # takes bytes, too
    return sink.getvalue().to_pybytes()


def writer_options(schema: pa.Schema, encoding: Encoding) -> dict[str, Any]:
    """Options of `pyarrow.parquet.ParquetWriter` for a table of this schema."""
    return {
        "compression": "zstd",
        "compression_level": encoding.level,
        "use_dictionary": list(encoding.dictionary),
        "sorting_columns": [pq.SortingColumn(schema.get_field_index(name)) for name in encoding.sorted_by],
        "write_statistics": True if encoding.statistics is None else list(encoding.statistics),
        "write_page_index": True,
    }


def completed(table: pa.Table, schema: pa.Schema, added: Collection[str] = ADDED_COLUMNS) -> pa.Table:
    """The table, and columns of the schema that were added after it was written, as nulls in the schema's places.

    Any other column that is missing stays missing.

    Args:
        table: rows of a file, or some of its columns.
        schema: the columns wanted.
        added: those that an older file may lack.
    """
    for field in schema:
        if field.name in added and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    known = [name for name in schema.names if name in table.column_names]
    return table.select(known + [name for name in table.column_names if name not in known])


def check_schema_version(metadata: Mapping[bytes, bytes] | None, uri: str) -> None:
    """Refuse a file of another schema version.

    Args:
        metadata: the file's key-value metadata.
        uri: the file, for the message.

    Raises:
        SchemaVersionError: it was written with another schema version.
        OutputError: it was not written by batchdet.
    """
    found = (metadata or {}).get(_VERSION_KEY)
    if found is None:
        raise OutputError(f"{uri} has no batchdet.schema_version: it is not batchdet's; choose another output folder")
    check_version(found.decode("utf-8", "replace"), uri)


def check_version(found: str, uri: str) -> None:
    """Refuse a schema version that is not ours, naming both.

    Raises:
        SchemaVersionError
    """
    if found != str(SCHEMA_VERSION):
        raise SchemaVersionError(
            f"{uri} has schema version {found}, this batchdet writes {SCHEMA_VERSION}; "
            "use the batchdet that wrote it, or another output folder"
        )
