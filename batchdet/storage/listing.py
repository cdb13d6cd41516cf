"""The source of a job becomes batches of listed images. Knows names and sizes; reads no image.

Keys arrive in pages; no request is ever made for a single key.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from batchdet.errors import SourceError, StorageError
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.layout import is_kept
from batchdet.storage.location import locate
from batchdet.storage.manifest import is_manifest, read_manifest
from batchdet.storage.names import printable_name
from batchdet.storage.pages import Row, pages
from batchdet.storage.patterns import Glob, compile_glob, has_magic
from batchdet.storage.schema import LISTING

BATCH_ROWS = 10_000
"""Rows of a listed batch, at most."""

Progress = Callable[[int], None]
"""Called after each page with the keys seen so far, images or not."""

Wanted = Callable[[str], bool]
"""Whether a key, as the filesystem spells it, is one of the source's images."""


def list_images(
    source: str,
    options: Mapping[str, Any],
    extensions: Sequence[str],
    on_progress: Progress | None = None,
    skip: str | None = None,
) -> Generator[pa.RecordBatch, None, None]:
    """Every image of a source, streamed, in no particular order.

    Args:
        source: a folder (`s3://b/p/`, `s3://b`, a plain path), one image file, a glob (see `patterns`; a prefix that
            ends inside a name is one: `s3://b/2026-1*/**`), or a manifest file (see `manifest`).
        options: fsspec storage options.
        extensions: endings of images without dot, compared without regard to case. A manifest is taken as it is;
            of an S3 Inventory, which lists a whole bucket, only keys with these endings count.
        on_progress: called after each page.
        skip: an output folder that may lie inside the source, on the same service: the files that batchdet keeps there
            are no part of the source, whatever `extensions` says. Other files beside them are. A manifest is taken as
            it is.

    Yields:
        Batches of `schema.LISTING`; `image_uri` is the full URI with scheme, never percent-encoded; a file name that
        is not UTF-8 is escaped (see `names`) and ends as a failed row, as an empty object does. A manifest may name an
        image twice.

    Raises:
        SourceError: the source cannot be listed or holds no image; one line that names it.
    """
    count = 0
    try:
        for batch in _open_source(source, options, extensions, on_progress or _ignore, skip):
            count += batch.num_rows
            yield batch
    except StorageError as error:
        raise SourceError(f"source {source}: {error.reason}") from error
    if not count:
        raise SourceError(f"source {source}: holds no images; extensions looked for: {', '.join(extensions)}")


def names_images(source: str) -> bool:
    """Whether the source is a manifest; one of a part of the images looks like one of all of them."""
    return not has_magic(source) and is_manifest(source)


def covers(source: str, options: Mapping[str, Any], extensions: Sequence[str]) -> Wanted:
    """Whether `list_images` would list a URI if it were there; of a manifest every URI, for it may name any.

    Args:
        source: as of `list_images`, as are the others.
        options: of the source's filesystem.
        extensions: of images.

    Raises:
        SourceError: no filesystem serves the source, or it is a broken pattern.
    """
    if names_images(source):
        return lambda _uri: True
    try:
        store = open_store(source, options)
    except StorageError as error:
        raise SourceError(f"source {source}: {error.reason}") from error
    if has_magic(source):
        fits = _glob(source, store, extensions).matches
    else:
        endings = tuple(f".{extension.lower()}" for extension in extensions)
        fits = lambda key: key.startswith(f"{store.root}/") and key.lower().endswith(endings)  # noqa: E731
    scheme = f"{store.uri.partition('://')[0]}://"

    def is_covered(uri: str) -> bool:
        return uri.startswith(scheme) and fits(locate(uri).path)

    return is_covered


def _ignore(_seen: int) -> None:
    pass


def _open_source(
    source: str, options: Mapping[str, Any], extensions: Sequence[str], on_progress: Progress, skip: str | None
) -> Iterator[pa.RecordBatch]:
    if names_images(source):
        return read_manifest(source, options, extensions, on_progress)
    store = open_store(source, options)
    if has_magic(source):
        listed, wanted = _open_glob(source, store, extensions)
    else:
        endings = tuple(f".{extension.lower()}" for extension in extensions)
        listed, wanted = pages(store, f"{store.root}/"), lambda key: key.lower().endswith(endings)
    return _batches(store, listed if skip is None else _without(listed, store, skip), wanted, on_progress)


def _open_glob(source: str, store: Store, extensions: Sequence[str]) -> tuple[Iterator[list[Row]], Wanted]:
    glob = _glob(source, store, extensions)
    return pages(store, glob.prefix, glob.max_folders), glob.matches


def _glob(source: str, store: Store, extensions: Sequence[str]) -> Glob:
    try:
        glob = compile_glob(store.root, extensions)
    except ValueError as error:
        raise SourceError(f"source {source}: {error}") from error
    if "/" not in glob.prefix:
        raise SourceError(f"source {source}: a bucket's name cannot be a pattern")
    return glob


def _without(listed: Iterator[list[Row]], store: Store, output: str) -> Iterator[list[Row]]:
    """The pages less the files that batchdet keeps in an output."""
    place = locate(output)
    folder = f"{place.path.rstrip('/')}/"
    if place.protocol != store.protocol:
        return listed
    return (
        [row for row in page if not (row[0].startswith(folder) and is_kept(row[0][len(folder) :]))] for page in listed
    )


def _batches(
    store: Store, listed: Iterable[list[Row]], wanted: Wanted, on_progress: Progress
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
    except UnicodeEncodeError:
        uris = pa.array([printable_name(full_uri(key)) for key in keys], pa.string())
    arrays = [pa.array(values, field.type) for values, field in zip(facts, list(LISTING)[1:], strict=True)]
    return pa.RecordBatch.from_arrays([uris, *arrays], schema=LISTING)
