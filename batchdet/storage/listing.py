"""The source of a job becomes batches of listed images. Knows names and sizes; reads no image.

Keys arrive in pages; no request is ever made for a single key.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from batchdet.errors import NotFoundError, SourceError, StorageError
from batchdet.records import ImageRef
from batchdet.storage.filesystem import Store, mapped_errors, open_store
from batchdet.storage.manifest import is_manifest, read_manifest
from batchdet.storage.patterns import Glob, compile_glob, has_magic
from batchdet.storage.schema import LISTING

BATCH_ROWS = 10_000
"""Rows of a listed batch, at most."""

Progress = Callable[[int], None]
"""Called after each page with the keys seen so far, images or not."""


def list_images(
    source: str, options: Mapping[str, Any], extensions: Sequence[str], on_progress: Progress | None = None
) -> Iterator[pa.RecordBatch]:
    """Every image of a source, streamed, in no particular order.

    Args:
        source: a folder or prefix (`s3://b/p/`, a plain path), one image file, a glob (see `patterns`), or a manifest
            file (see `manifest`).
        options: fsspec storage options.
        extensions: endings of images without dot, compared without regard to case. A manifest is taken as it is;
            of an S3 Inventory, which lists a whole bucket, only keys with these endings count.
        on_progress: called after each page.

    Yields:
        Batches of `schema.LISTING`; `image_uri` is the full URI with scheme, never percent-encoded. A manifest may
        name an image twice.

    Raises:
        SourceError: the source cannot be listed or holds no image; one line that names it.
    """
    count = 0
    try:
        for batch in _open_source(source, options, extensions, on_progress or (lambda seen: None)):
            count += batch.num_rows
            yield batch
    except StorageError as error:
        raise SourceError(f"source {source}: {error.reason}") from error
    if not count:
        raise SourceError(f"source {source}: no images under it; extensions looked for: {', '.join(extensions)}")


def _open_source(
    source: str, options: Mapping[str, Any], extensions: Sequence[str], on_progress: Progress
) -> Iterator[pa.RecordBatch]:
    if is_manifest(source) and not has_magic(source):
        return read_manifest(source, options, extensions, on_progress)
    try:
        if has_magic(source):
            return _list_glob(source, options, extensions, on_progress)
    except ValueError as error:
        raise SourceError(f"source {source}: {error}") from error
    return _list_folder(source, options, extensions, on_progress)


def _list_folder(
    source: str, options: Mapping[str, Any], extensions: Sequence[str], on_progress: Progress
) -> Iterator[pa.RecordBatch]:
    store = open_store(source, options)
    endings = tuple(f".{extension.lower()}" for extension in extensions)
    prefix = f"{store.root}/"
    pages = _pages(store, prefix, None)
    yield from _batches(store, pages, lambda key: key.lower().endswith(endings), on_progress)


def _list_glob(
    source: str, options: Mapping[str, Any], extensions: Sequence[str], on_progress: Progress
) -> Iterator[pa.RecordBatch]:
    store = open_store(source, options)
    glob = compile_glob(store.root, extensions)
    return _batches(store, _pages(store, glob.prefix, glob), glob.matches, on_progress)


def _batches(
    store: Store, pages: Iterable[list[ImageRef]], wanted: Callable[[str], bool], on_progress: Progress
) -> Iterator[pa.RecordBatch]:
    seen = 0
    held: list[ImageRef] = []
    for page in pages:
        seen += len(page)
        on_progress(seen)
        held += [ref for ref in page if wanted(ref.uri)]
        while len(held) >= BATCH_ROWS:
            yield _to_batch(store, held[:BATCH_ROWS])
            held = held[BATCH_ROWS:]
    if held:
        yield _to_batch(store, held)


def _to_batch(store: Store, refs: Sequence[ImageRef]) -> pa.RecordBatch:
    try:
        uris = pa.array([store.fs.unstrip_protocol(ref.uri) for ref in refs], pa.string())
    except UnicodeEncodeError as error:
        name = str(error.object).encode("utf-8", "backslashreplace").decode()
        raise StorageError(name, f"the name {name} is not UTF-8; rename the file") from error
    columns = [
        uris,
        pa.array([ref.etag for ref in refs], pa.string()),
        pa.array([ref.size_bytes for ref in refs], pa.int64()),
        pa.array([ref.last_modified for ref in refs], LISTING.field("last_modified").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=LISTING)


def _pages(store: Store, prefix: str, glob: Glob | None) -> Iterator[list[ImageRef]]:
    """Pages of refs whose `uri` is the key as the filesystem spells it."""
    max_folders = glob.max_folders if glob else None
    if "s3" in _protocols(store):
        return _s3_pages(store, prefix)
    folder = prefix.rpartition("/")[0]
    if store.is_local:
        return _local_pages(folder or "/", max_folders)
    return _walk_pages(store, folder, max_folders)


def _s3_pages(store: Store, prefix: str) -> Iterator[list[ImageRef]]:
    bucket, _, key_prefix = prefix.partition("/")
    request = {"Bucket": bucket, "Prefix": key_prefix, **store.fs.req_kw}
    while True:
        with mapped_errors(store.uri):
            page = store.fs.call_s3("list_objects_v2", **request)
        yield [
            ImageRef(
                uri=f"{bucket}/{entry['Key']}",
                etag=entry["ETag"].strip('"') if "ETag" in entry else None,
                size_bytes=entry["Size"],
                last_modified=entry["LastModified"],
            )
            for entry in page.get("Contents", ())
            if not entry["Key"].endswith("/")
        ]
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _local_pages(folder: str, max_folders: int | None) -> Iterator[list[ImageRef]]:
    """One page per folder; links are followed, but never into a folder they lie in."""
    with mapped_errors(folder):
        if os.path.isfile(folder):  # noqa: PTH113
            yield [_local_ref(folder, os.stat(folder))]  # noqa: PTH116
            return
        pending = [(folder, frozenset[tuple[int, int]](), 0)]
    while pending:
        current, above, depth = pending.pop()
        page = []
        with mapped_errors(f"file://{current}"):
            own = os.stat(current)  # noqa: PTH116
            inside = above | {(own.st_dev, own.st_ino)}
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.is_file():
                        page.append(_local_ref(entry.path, entry.stat()))
                    elif entry.is_dir() and (max_folders is None or depth < max_folders):
                        target = entry.stat()
                        if (target.st_dev, target.st_ino) not in inside:
                            pending.append((entry.path, inside, depth + 1))
        yield page


def _local_ref(path: str, found: os.stat_result) -> ImageRef:
    modified = datetime.fromtimestamp(found.st_mtime_ns // 1000 / 1_000_000, UTC)
    return ImageRef(path, None, found.st_size, modified)


def _walk_pages(store: Store, folder: str, max_folders: int | None) -> Iterator[list[ImageRef]]:
    """One page per folder, through fsspec, whatever the store."""
    depth = None if max_folders is None else max_folders + 1
    with mapped_errors(store.uri):
        if not store.fs.exists(folder):
            raise NotFoundError(store.uri, "not found")
        for _, _, files in store.fs.walk(folder, maxdepth=depth, detail=True):
            store.fs.invalidate_cache()
            yield [_walked_ref(info) for info in files.values()]


def _walked_ref(info: Mapping[str, Any]) -> ImageRef:
    etag = info.get("etag") or info.get("ETag")
    modified = next(
        (info[name] for name in ("last_modified", "updated", "LastModified", "created") if info.get(name)), None
    )
    return ImageRef(str(info["name"]), str(etag).strip('"') if etag else None, info.get("size"), _utc(modified))


def _utc(value: object) -> datetime | None:
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _protocols(store: Store) -> tuple[str, ...]:
    protocol = store.fs.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
