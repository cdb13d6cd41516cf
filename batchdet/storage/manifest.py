"""Manifest files: someone else's list of images, as Parquet, CSV, JSON lines, text or S3 Inventory. Reads no image.

A table needs a column image_uri; etag, size_bytes and last_modified are used where present. A text file holds one URI
a line. A URI without scheme is a path beside the manifest, or an absolute local path. An S3 Inventory is named by its
`manifest.json`.
"""

import gzip
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from posixpath import normpath
from typing import Any, TypeAlias
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from batchdet.errors import SourceError
from batchdet.fields import is_signed
from batchdet.storage.filesystem import Store, mapped_errors, open_store
from batchdet.storage.schema import LISTING, UTC_TIMESTAMP

_ENDINGS = re.compile(
    r"\.(parquet|csv|csv\.gz|jsonl|jsonl\.gz|ndjson|txt|txt\.gz)$|(^|/)manifest\.json$", re.IGNORECASE
)
_ROWS = 10_000
_Column: TypeAlias = "pa.Array[Any]"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ALIASES = {"s3a": "s3", "gcs": "gs", "local": "file"}
_INVENTORY_COLUMNS = {
    "Bucket": "bucket",
    "Key": "key",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
    "Size": "size",
    "LastModifiedDate": "last_modified_date",
    "ETag": "e_tag",
}
_USED = {*LISTING.names, *_INVENTORY_COLUMNS.values()}


def is_manifest(source: str) -> bool:
    """Whether the source is named like a manifest."""
    return _ENDINGS.search(source) is not None


def read_manifest(
    source: str, options: Mapping[str, Any], extensions: Sequence[str], on_progress: Callable[[int], None]
) -> Iterator[pa.RecordBatch]:
    """Rows of a manifest as batches of `schema.LISTING`, streamed; a URI named twice comes twice.

    Args:
        source: the file.
        options: fsspec storage options.
        on_progress: called after each page with the rows seen so far.
        extensions: endings that count in an S3 Inventory; any other manifest is taken as it is.

    Raises:
        SourceError: it is not what its name says, or has no column image_uri (names the columns found).
        StorageError: it cannot be read.
    """
    store = open_store(source, options)
    inventory = source.lower().endswith("manifest.json")
    pages = _inventory_pages(store, options) if inventory else _manifest_pages(store)
    endings = tuple(f".{extension.lower()}" for extension in extensions)
    seen = 0
    for page in pages:
        seen += page.num_rows
        on_progress(seen)
        if inventory:
            wanted = [uri.lower().endswith(endings) for uri in _texts(page, "image_uri", store.uri)]
            page = page.filter(pa.array(wanted, pa.bool_()))
        yield page


def _manifest_pages(store: Store) -> Iterator[pa.RecordBatch]:
    folder = str(store.fs.unstrip_protocol(store.root.rpartition("/")[0]))
    for raw in _raw_pages(store):
        with _named_errors(store.uri):
            if "image_uri" not in raw.schema.names:
                raise _no_image_uri(store, raw.schema.names)
            written = _texts(raw, "image_uri", store.uri)
            _refuse_signed(written, store.uri)
            uris = [_full_uri(uri, folder) for uri in written]
            yield _page(uris, raw, ("etag", "size_bytes", "last_modified"))


def _refuse_signed(uris: Sequence[str], manifest: str) -> None:
    for uri in filter(is_signed, uris):
        plain = uri.partition("?")[0].rpartition("@")[2]
        raise SourceError(
            f"manifest {manifest}: the URI of {plain} holds a secret, which would be recorded with its rows, and a "
            "signature makes it a new image every time; name objects by plain URIs, such as s3://bucket/key"
        )


def _no_image_uri(store: Store, found: Sequence[str]) -> SourceError:
    return SourceError(f"manifest {store.uri}: no column image_uri; found: {', '.join(found)}")


def _inventory_pages(store: Store, options: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
    try:
        tree = json.loads(store.read_bytes(""))
        names = [_INVENTORY_COLUMNS.get(name.strip(), name.strip()) for name in tree["fileSchema"].split(",")]
        bucket = tree["destinationBucket"].rpartition(":")[2]
        kind, keys = tree["fileFormat"], [entry["key"] for entry in tree["files"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"source {store.uri}: not the manifest of an S3 Inventory ({error!r})") from error
    if kind not in ("CSV", "Parquet"):
        raise SourceError(f"source {store.uri}: an S3 Inventory as {kind} is not read; order CSV or Parquet")
    for key in keys:
        part = open_store(f"s3://{bucket}/{key}", options)
        raw_pages = _csv_pages(part, names) if kind == "CSV" else _parquet_pages(part)
        for raw in raw_pages:
            with _named_errors(part.uri):
                yield _inventory_page(_current(raw), part.uri, encoded=kind == "CSV")


def _current(raw: pa.RecordBatch) -> pa.RecordBatch:
    """Only current versions of a versioned bucket, no delete markers."""
    for name, keep in (("is_latest", "true"), ("is_delete_marker", "false")):
        if name in raw.schema.names:
            raw = raw.filter(pc.equal(pc.utf8_lower(raw.column(name).cast(pa.string())), pa.scalar(keep)))
    return raw


def _inventory_page(raw: pa.RecordBatch, uri: str, *, encoded: bool) -> pa.RecordBatch:
    keys = _texts(raw, "key", uri)
    if encoded:
        keys = [unquote_plus(key) for key in keys]
    uris = [f"s3://{bucket}/{key}" for bucket, key in zip(_texts(raw, "bucket", uri), keys, strict=True)]
    return _page(uris, raw, ("e_tag", "size", "last_modified_date"))


def _texts(raw: pa.RecordBatch, name: str, uri: str) -> list[str]:
    """A column that every row must have, as strings."""
    values = [value for value in raw.column(name).cast(pa.string()).to_pylist() if value]
    if len(values) != raw.num_rows:
        raise SourceError(f"manifest {uri}: a row has no {name}")
    return values


def _page(uris: list[str], raw: pa.RecordBatch, names: tuple[str, str, str]) -> pa.RecordBatch:
    """A listed batch of URIs and, where `raw` has them, its columns of etag, size and time."""
    found = [raw.column(name) if name in raw.schema.names else pa.nulls(len(uris)) for name in names]
    etag, size, modified = (_blank_to_null(column) for column in found)
    quoteless = pc.utf8_trim(etag.cast(pa.string()), '"')
    columns: list[_Column] = [pa.array(uris, pa.string()), quoteless, size.cast(pa.int64()), _utc(modified)]
    return pa.RecordBatch.from_arrays(columns, schema=LISTING)


def _blank_to_null(column: _Column) -> _Column:
    if not pa.types.is_string(column.type):
        return column
    blank = pc.equal(column, pa.scalar(""))
    filled: _Column = pc.if_else(blank, pa.scalar(None, pa.string()), column)
    return filled


def _utc(column: _Column) -> _Column:
    """Times as UTC; those without a zone are taken as UTC."""
    if pa.types.is_timestamp(column.type):
        zone = pa.timestamp(column.type.unit, tz="UTC")
        return column.cast(zone).cast(UTC_TIMESTAMP, safe=False)
    if not pa.types.is_string(column.type):
        return column.cast(UTC_TIMESTAMP)
    has_zone = pc.match_substring_regex(column, r"(Z|[+-]\d\d:?\d\d)$")
    nothing = pa.scalar(None, pa.string())
    zoned = pc.if_else(has_zone, column, nothing).cast(UTC_TIMESTAMP)
    local = pc.if_else(has_zone, nothing, column).cast(pa.timestamp("us")).cast(UTC_TIMESTAMP)
    times: _Column = pc.coalesce(zoned, local)
    return times


def _full_uri(uri: str, folder: str) -> str:
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return f"file://{normpath(uri)}" if uri.startswith("/") else _beside(folder, uri)
    name = scheme.group().removesuffix("://").lower()
    rest = uri[scheme.end() :]
    return f"{_ALIASES.get(name, name)}://{'/' + rest.lstrip('/') if name == 'memory' else rest}"


def _beside(folder: str, name: str) -> str:
    """A relative name as a URI; only on a disk do `.` and `..` mean something."""
    if folder.startswith("file://"):
        return f"file://{normpath(folder.removeprefix('file://') + '/' + name)}"
    return f"{folder}/{name}"


def _raw_pages(store: Store) -> Iterator[pa.RecordBatch]:
    name = store.root.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        return _parquet_pages(store)
    if name.endswith(".csv"):
        return _csv_pages(store, None)
    return _text_pages(store) if name.endswith(".txt") else _json_pages(store)


def _parquet_pages(store: Store) -> Iterator[pa.RecordBatch]:
    with _local_copy(store) as path, pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        used = [name for name in names if name in _USED]
        yield from file.iter_batches(batch_size=_ROWS, columns=used or names)


def _csv_pages(store: Store, names: list[str] | None) -> Iterator[pa.RecordBatch]:
    """Every used column as text: what a column of another kind looks like further down is no concern of ours."""
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    with _local_copy(store) as path:
        header = names
        if header is None:
            with pyarrow.csv.open_csv(path, parse_options=parse) as reader:
                header = reader.schema.names
        used = [name for name in header if name in _USED] or header
        convert = pyarrow.csv.ConvertOptions(include_columns=used, column_types=dict.fromkeys(used, pa.string()))
        with pyarrow.csv.open_csv(path, pyarrow.csv.ReadOptions(column_names=names), parse, convert) as reader:
            yield from reader


def _json_pages(store: Store) -> Iterator[pa.RecordBatch]:
    with _local_copy(store) as path:
        with pyarrow.json.open_json(path) as reader:
            header = reader.schema.names
        if "image_uri" not in header:
            raise _no_image_uri(store, header)
        used = pa.schema({**{field.name: field.type for field in LISTING}, "last_modified": pa.string()})
        parse = pyarrow.json.ParseOptions(explicit_schema=used, unexpected_field_behavior="ignore")
        with pyarrow.json.open_json(path, parse_options=parse) as reader:
            yield from reader


def _text_pages(store: Store) -> Iterator[pa.RecordBatch]:
    opened = gzip.open if store.root.lower().endswith(".gz") else open
    with _local_copy(store) as path, opened(path, "rt", encoding="utf-8-sig", newline="\n") as stream:
        lines = (line.rstrip("\r\n") for line in stream)
        named = (line for line in lines if line)
        while page := list(islice(named, _ROWS)):
            yield pa.record_batch({"image_uri": page})


@contextmanager
def _local_copy(store: Store) -> Iterator[str]:
    """The manifest on this machine's disk, so that a fault half-way through it can be tried again."""

    def copy() -> None:
        with mapped_errors(store.uri):
            store.fs.get_file(store.root, path)

    with _named_errors(store.uri):
        if store.is_local:
            yield store.root
            return
        with tempfile.TemporaryDirectory(prefix="batchdet-manifest-") as folder:
            path = f"{folder}/{store.root.rpartition('/')[2]}"
            store.patience.run(copy)
            yield path


@contextmanager
def _named_errors(uri: str) -> Iterator[None]:
    """Name the manifest where it is not what its name says; storage errors become ours."""
    with mapped_errors(uri):
        try:
            yield
        except (pa.ArrowException, UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise SourceError(f"manifest {uri}: {' '.join(str(error).split())}") from error
