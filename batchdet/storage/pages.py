"""Keys under a prefix, page by page: S3, a local disk, or any fsspec filesystem. Knows no extensions and no patterns.

A page is a list of rows (key as the filesystem spells it, etag, size in bytes, time of last change).
"""

import errno
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from batchdet.storage.filesystem import Store, mapped_errors

Row = tuple[str, str | None, int | None, datetime | None]

_PAGE_ROWS = 10_000
_RANGES = 8
_DESCENTS = 8


def pages(store: Store, prefix: str, max_folders: int | None = None) -> Iterator[list[Row]]:
    """Every object whose key begins with `prefix`, folder markers left out, in no particular order.

    Args:
        store: gives the filesystem; its own folder plays no part.
        prefix: as the filesystem spells it. Off S3 the last folder in it is what is walked, whatever name follows. A
            prefix that ends in a slash and names a single file gives this file.
        max_folders: how many folders deep below the last folder of `prefix`; None: all. S3 ignores it.

    Raises:
        NotFoundError, AccessDeniedError, TransientStorageError, StorageError
    """
    if store.protocol == "s3":
        return _s3_pages(store, prefix)
    folder = prefix.rpartition("/")[0] or "/"
    return _local_pages(folder, max_folders) if store.is_local else _walk_pages(store, folder, max_folders)


@dataclass(frozen=True, slots=True)
class _Range:
    """A stretch of one bucket's keys in UTF-8 byte order: after `after`, before `before`."""

    bucket: str
    prefix: str
    after: str | None = None
    before: str | None = None


def _s3_pages(store: Store, prefix: str) -> Iterator[list[Row]]:
    """Pages of several ranges at once: one after the other they would take a round trip per thousand keys."""
    bucket, _, key_prefix = prefix.partition("/")
    with mapped_errors(f"s3://{prefix}"):
        _parse_times_fast(store.fs)
    found = False
    with ThreadPoolExecutor(_RANGES) as threads:
        waiting: dict[Future[Any], _Range] = {}
        for stretch in _split(store, _Range(bucket, key_prefix)):
            waiting[threads.submit(_s3_page, store, stretch, None)] = stretch
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                stretch = waiting.pop(future)
                page = future.result()
                rows, more = _s3_rows(page, stretch)
                if more:
                    waiting[threads.submit(_s3_page, store, stretch, page["NextContinuationToken"])] = stretch
                found = found or bool(rows)
                yield rows
    if not found and key_prefix.endswith("/"):
        yield _s3_single(store, bucket, key_prefix.rstrip("/"))


def _parse_times_fast(fs: Any) -> None:
    """Have the client parse ISO times by itself: botocore's own way takes most of a listing's CPU."""
    from botocore.utils import parse_timestamp

    def parse(value: Any) -> datetime:
        try:
            return datetime.fromisoformat(value)
        except (TypeError, ValueError):
            other: datetime = parse_timestamp(value)
            return other

    fs.connect()
    fs.session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse)


def _split(store: Store, whole: _Range) -> list[_Range]:
    """The range cut at folders that one delimited page shows; whole where it shows none.

    A cut costs at most one extra request; it never changes which keys are found.
    """
    prefix = whole.prefix
    for _ in range(_DESCENTS):
        page = _s3_page(store, _Range(whole.bucket, prefix), None, Delimiter="/")
        folders = [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
        if len(folders) != 1 or page.get("IsTruncated") or page.get("Contents"):
            break
        prefix = folders[0]
    step = -(-len(folders) // _RANGES) or 1
    cuts = [None, *sorted(folders, key=str.encode)[step::step], None]
    return [_Range(whole.bucket, whole.prefix, after, before) for after, before in pairwise(cuts)]


def _s3_page(store: Store, stretch: _Range, token: str | None, **more: object) -> dict[str, Any]:
    request = {"Bucket": stretch.bucket, "Prefix": stretch.prefix, **store.fs.req_kw, **more}
    if token is not None:
        request["ContinuationToken"] = token
    elif stretch.after is not None:
        request["StartAfter"] = stretch.after

    def ask() -> dict[str, Any]:
        with mapped_errors(f"s3://{stretch.bucket}/{stretch.prefix}"):
            page: dict[str, Any] = store.fs.call_s3("list_objects_v2", **request)
            return page

    return store.patience.run(ask)


def _s3_rows(page: Mapping[str, Any], stretch: _Range) -> tuple[list[Row], bool]:
    """The page's rows inside the range, and whether the range goes on after it."""
    entries = page.get("Contents", [])
    more = bool(page.get("IsTruncated"))
    if stretch.after is not None and entries and entries[0]["Key"].encode() <= stretch.after.encode():
        # A store that knows no StartAfter begins with the keys of the ranges before: they would be listed twice.
        begin = stretch.after.encode()
        entries = [entry for entry in entries if entry["Key"].encode() > begin]
    if stretch.before is not None and entries and entries[-1]["Key"].encode() >= stretch.before.encode():
        end = stretch.before.encode()
        entries, more = [entry for entry in entries if entry["Key"].encode() < end], False
    return [_s3_row(stretch.bucket, entry) for entry in entries if not entry["Key"].endswith("/")], more


def _s3_single(store: Store, bucket: str, key: str) -> list[Row]:
    """The object of exactly this key: the first in order of those it is a prefix of."""
    page = _s3_page(store, _Range(bucket, key), None, MaxKeys=1)
    return [_s3_row(bucket, entry) for entry in page.get("Contents", ()) if entry["Key"] == key]


def _s3_row(bucket: str, entry: Mapping[str, Any]) -> Row:
    etag = entry.get("ETag")
    return f"{bucket}/{entry['Key']}", etag and etag.strip('"'), entry["Size"], entry["LastModified"]


def _local_pages(folder: str, max_folders: int | None) -> Iterator[list[Row]]:
    """Links are followed, but never into a folder they lie in; a link to nothing is listed without size."""
    with mapped_errors(f"file://{folder}"):
        if os.path.isfile(folder):  # noqa: PTH113
            yield [_local_row(folder, os.stat(folder))]  # noqa: PTH116
            return
    pending = [(folder, frozenset[tuple[int, int]](), 0)]
    while pending:
        current, above, depth = pending.pop()
        rows: list[Row] = []
        with mapped_errors(f"file://{current}"), os.scandir(current) as entries:
            own = os.stat(current)  # noqa: PTH116
            inside = above | {(own.st_dev, own.st_ino)}
            for entry in entries:
                found = _local_entry(entry)
                if isinstance(found, os.stat_result):
                    if (max_folders is None or depth < max_folders) and (found.st_dev, found.st_ino) not in inside:
                        pending.append((entry.path, inside, depth + 1))
                elif found is not None:
                    rows.append(found)
                if len(rows) == _PAGE_ROWS:
                    yield rows
                    rows = []
        yield rows


def _local_entry(entry: "os.DirEntry[str]") -> Row | os.stat_result | None:
    """A folder's state, the row of a file or of a link to nothing; None of all else, and of what is gone since."""
    try:
        if entry.is_dir():
            return entry.stat()
        if entry.is_file():
            return _local_row(entry.path, entry.stat())
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    return (entry.path, None, None, None) if entry.is_symlink() else None


def _local_row(path: str, found: os.stat_result) -> Row:
    return path, None, found.st_size, datetime.fromtimestamp(found.st_mtime_ns // 1000 / 1_000_000, UTC)


def _walk_pages(store: Store, folder: str, max_folders: int | None) -> Iterator[list[Row]]:
    """Any other filesystem, a page per folder."""
    depth = None if max_folders is None else max_folders + 1
    with mapped_errors(str(store.fs.unstrip_protocol(folder))):
        info = store.fs.info(folder)
        if info["type"] == "file":
            yield [_walked_row(info)]
            return
        for _, _, files in store.fs.walk(folder, maxdepth=depth, detail=True, on_error="raise"):
            store.fs.invalidate_cache()
            yield [_walked_row(info) for info in files.values()]


def _walked_row(info: Mapping[str, Any]) -> Row:
    etag = info.get("etag") or info.get("ETag")
    times = ("last_modified", "LastModified", "mtime", "updated", "created")
    changed = next((info[name] for name in times if info.get(name)), None)
    return str(info["name"]), str(etag).strip('"') if etag else None, info.get("size"), _utc(changed)


def _utc(value: object) -> datetime | None:
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
