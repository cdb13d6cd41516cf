"""The source of a job becomes batches of listed images. Knows names and sizes; reads no image.

Keys arrive in pages; no request is ever made for a single key.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from batchdet.errors import SourceError, StorageError
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.manifest import is_manifest, read_manifest
from batchdet.storage.pages import Row, pages
from batchdet.storage.patterns import compile_glob, has_magic
from batchdet.storage.schema import LISTING

BATCH_ROWS = 10_000
"""Rows of a listed batch, at most."""

Progress = Callable[[int], None]
"""Called after each page with the keys seen so far, images or not."""


def list_images(
    source: str, options: Mapping[str, Any], extensions: Sequence[str], on_progress: Progress | None = None
) -> Generator[pa.RecordBatch, None, None]:
    """Every image of a source, streamed, in no particular order.

    Args:
        source: a folder (`s3://b/p/`, `s3://b`, a plain path), one image file, a glob (see `patterns`; a prefix that
            ends inside a name is one: `s3://b/2026-1*/**`), or a manifest file (see `manifest`).
        options: fsspec storage options.
        extensions: endings of images without dot, compared without regard to case. A manifest is taken as it is;
            of an S3 Inventory, which lists a whole bucket, only keys with these endings count.
        on_progress: called after each page.

    Yields:
        Batches of `schema.LISTING`; `image_uri` is the full URI with scheme, never percent-encoded. A manifest may
        name an image twice. Empty objects are listed: they end as failed rows.

    Raises:
        SourceError: the source cannot be listed or holds no image; one line that names it.
    """
    count = 0
    try:
        for batch in _open_source(source, options, extensions, on_progress or _ignore):
            count += batch.num_rows
            yield batch
    except StorageError as error:
        raise SourceError(f"source {source}: {error.reason}") from error
    if not count:
        raise SourceError(f"source {source}: holds no images; extensions looked for: {', '.join(extensions)}")


def _ignore(_seen: int) -> None:
    pass


def _open_source(
    source: str, options: Mapping[str, Any], extensions: Sequence[str], on_progress: Progress
) -> Iterator[pa.RecordBatch]:
    if has_magic(source):
        return _list_glob(source, options, extensions, on_progress)
    if is_manifest(source):
        return read_manifest(source, options, extensions, on_progress)
    store = open_store(source, options)
    endings = tuple(f".{extension.lower()}" for extension in extensions)
    return _batches(store, pages(store, f"{store.root}/"), lambda key: key.lower().endswith(endings), on_progress)


def _list_glob(
    source: str, options: Mapping[str, Any], extensions: Sequence[str], on_progress: Progress
) -> Iterator[pa.RecordBatch]:
    store = open_store(source, options)
    try:
        glob = compile_glob(store.root, extensions)
    except ValueError as error:
        raise SourceError(f"source {source}: {error}") from error
    if "/" not in glob.prefix:
        raise SourceError(f"source {source}: a bucket's name cannot be a pattern")
    return _batches(store, pages(store, glob.prefix, glob.max_folders), glob.matches, on_progress)


def _batches(
    store: Store, listed: Iterable[list[Row]], wanted: Callable[[str], bool], on_progress: Progress
) -> Iterator[pa.RecordBatch]:
    seen = 0
    held: list[Row] = []
    for page in listed:
        seen += len(page)
        on_progress(seen)
        held += [row for row in page if wanted(row[0])]
        while len(held) >= BATCH_ROWS:
            yield _to_batch(store, held[:BATCH_ROWS])
            held = held[BATCH_ROWS:]
    if held:
        yield _to_batch(store, held)


def _to_batch(store: Store, rows: Sequence[Row]) -> pa.RecordBatch:
    keys, *facts = zip(*rows, strict=True)
    full_uri = store.fs.unstrip_protocol
    try:
        uris = pa.array([full_uri(key) for key in keys], pa.string())
    except UnicodeEncodeError as error:
        name = str(error.object).encode("utf-8", "backslashreplace").decode()
        raise StorageError(store.uri, f"the name {name} is not UTF-8; rename the file") from error
    arrays = [pa.array(values, field.type) for values, field in zip(facts, list(LISTING)[1:], strict=True)]
    return pa.RecordBatch.from_arrays([uris, *arrays], schema=LISTING)
