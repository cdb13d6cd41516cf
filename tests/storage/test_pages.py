"""S3 in parallel ranges of small pages finds every key once, whatever the tree looks like."""

from collections.abc import Iterator
from typing import Any

import pytest

from batchdet.storage.filesystem import open_store
from batchdet.storage.pages import pages
from tests.servers.s3 import Bucket, S3Server, moto_server, new_bucket

TREES = {
    "flat": [f"p/{n:03d}.jpg" for n in range(40)],
    "many folders": [f"p/{folder:02d}/{n}.jpg" for folder in range(20) for n in range(3)],
    "more folders than a page": [f"p/{folder:02d}/a.jpg" for folder in range(30)],
    "one folder in the other": [f"p/a/b/c/{folder}/{n}.jpg" for folder in "xyz" for n in range(4)],
    "lopsided": ["p/a/1.jpg", "p/b/1.jpg", *(f"p/c/{n}.jpg" for n in range(30))],
    "files beside folders": ["p/0.jpg", "p/a/1.jpg", "p/b.jpg", "p/b/1.jpg", "p/c/1.jpg", "p/z.jpg"],
    "unicode order": [f"p/{letter}/{n}.jpg" for letter in "aZé写\U0001f600\uffee" for n in range(3)],
    "folder markers": ["p/", "p/a/", "p/a/1.jpg", "p/b/", "p/c/", "p/c/1.jpg"],
    "names with odd signs": ["p/a b/1.jpg", "p/a+b/1.jpg", "p/a%20b/1.jpg", "p/a#/1.jpg", "p/a?/1.jpg", "p//1.jpg"],
    "empty": ["q/1.jpg"],
}


@pytest.fixture(scope="module")
def small_pages() -> Iterator[S3Server]:
    """A server whose pages hold seven keys."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "7")
        with moto_server() as server:
            yield server


@pytest.mark.parametrize("tree", TREES)
def test_every_key_once(small_pages: S3Server, tree: str) -> None:
    bucket = new_bucket(small_pages)
    bucket.put_all(dict.fromkeys(TREES[tree], b"x"))
    bucket.put_all({"o.jpg": b"x", "p2/1.jpg": b"x"})
    options = {"key": "k", "secret": "s", "endpoint_url": small_pages.endpoint}
    found = [row[0] for page in pages(open_store(bucket.uri, options), f"{bucket.name}/p/") for row in page]
    expected = [f"{bucket.name}/{key}" for key in TREES[tree] if key.startswith("p/") and not key.endswith("/")]
    assert sorted(found) == sorted(expected)
    assert Bucket(small_pages, bucket.name).keys(), "the bucket is really there"


def test_no_key_comes_twice_from_a_store_that_knows_no_start_after(small_pages: S3Server) -> None:
    def forget(params: dict[str, Any], **_: object) -> None:
        forgotten.append(params.pop("StartAfter", None))

    forgotten: list[str | None] = []
    keys = TREES["many folders"]
    bucket = new_bucket(small_pages)
    bucket.put_all(dict.fromkeys(keys, b"x"))
    store = open_store(bucket.uri, {"key": "k", "secret": "s", "endpoint_url": small_pages.endpoint})
    store.fs.connect()
    event = "before-parameter-build.s3.ListObjectsV2"
    store.fs.s3.meta.events.register_first(event, forget, unique_id="forget")
    try:
        found = [row[0] for page in pages(store, f"{bucket.name}/p/") for row in page]
    finally:
        store.fs.s3.meta.events.unregister(event, unique_id="forget")
    assert any(forgotten), "the listing was cut into ranges"
    assert sorted(found) == sorted(f"{bucket.name}/{key}" for key in keys)
