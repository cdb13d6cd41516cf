"""New, changed, failed, unchanged: DuckDB's answer against a plain loop."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet.errors import SourceError
from batchdet.records import ImageRef
from batchdet.storage.classify import PlanCounts, classified
from batchdet.storage.schema import KNOWN
from tests.storage.made import NOON, listing

Known = tuple[ImageRef, str, str]

NAMES = ("a", "A", "é", "写", "\U0001f600", "\uffee", "a b", "a#", "z")
URIS = st.sampled_from([f"s3://b/{name}.jpg" for name in NAMES])
REFS = st.builds(
    ImageRef,
    uri=URIS,
    etag=st.sampled_from([None, "1", "2"]),
    size_bytes=st.sampled_from([None, 0, 1]),
    last_modified=st.sampled_from([None, NOON, NOON + timedelta(microseconds=1)]),
)
RUN_IDS = ("20260101T000000Z-00000000", "20260102T000000Z-00000000", "20260102T000000Z-ffffffff")
STATUSES = st.sampled_from(["labelled", "failed", "deleted"])


@st.composite
def known_rows(draw: st.DrawFn) -> list[Known]:
    """At most one row per image and run, as law 2 has it, in any order."""
    rows = draw(
        st.lists(st.tuples(REFS, STATUSES, st.sampled_from(RUN_IDS)), max_size=15, unique_by=lambda r: (r[0].uri, r[2]))
    )
    return draw(st.permutations(rows))


def known_batches(rows: list[Known]) -> Iterator[pa.RecordBatch]:
    for row in rows:
        values = (*astuple(row[0]), *row[1:])
        arrays = [pa.array([value], field.type) for value, field in zip(values, KNOWN, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=KNOWN)


def differ(left: object, right: object) -> bool:
    return left is not None and right is not None and left != right


def oracle(ref: ImageRef, known: list[Known], retry_failed: bool) -> str:
    rows = [row for row in known if row[0].uri == ref.uri]
    if not rows:
        return "new"
    old, status, _ = max(rows, key=lambda row: row[2])
    if status == "deleted":
        return "new"
    if ref.etag is not None and old.etag is not None:
        changed = ref.etag != old.etag
    else:
        changed = differ(ref.size_bytes, old.size_bytes) or differ(ref.last_modified, old.last_modified)
    if changed:
        return "changed"
    return "failed" if status == "failed" and retry_failed else "unchanged"


def planned(
    refs: Iterable[ImageRef], known: list[Known], retry_failed: bool = True
) -> tuple[PlanCounts, list[ImageRef]]:
    with classified(listing(refs, batch=2), known_batches(known), retry_failed) as result:
        rows = [row for batch in result.batches(3) for row in batch.to_pylist()]
        return result.counts, [ImageRef(*row.values()) for row in rows]


@settings(max_examples=60, deadline=None)
@given(refs=st.lists(REFS, max_size=9, unique_by=lambda ref: ref.uri), known=known_rows(), retry_failed=st.booleans())
def test_equals_a_plain_loop(refs: list[ImageRef], known: list[Known], retry_failed: bool) -> None:
    classes = {ref: oracle(ref, known, retry_failed) for ref in refs}
    counts, manifest = planned(refs, known, retry_failed)
    found = list(classes.values())
    assert counts == PlanCounts(
        num_listed=len(refs),
        num_new=found.count("new"),
        num_changed=found.count("changed"),
        num_failed_retry=found.count("failed"),
        num_unchanged=found.count("unchanged"),
        num_undated=sum((ref.etag, ref.size_bytes, ref.last_modified) == (None, None, None) for ref in refs),
        bytes_planned=sum(ref.size_bytes or 0 for ref, kind in classes.items() if kind != "unchanged"),
    )
    expected = [ref for ref, kind in classes.items() if kind != "unchanged"]
    assert manifest == sorted(expected, key=lambda ref: ref.uri.encode()), "UTF-8 byte order"
    assert counts.num_planned == len(manifest)


@settings(max_examples=20, deadline=None)
@given(refs=st.lists(REFS, min_size=1, max_size=12), order=st.randoms(use_true_random=False))
def test_a_uri_listed_twice_counts_once_and_order_is_nothing(refs: list[ImageRef], order: object) -> None:
    first = planned(refs, [])
    shuffled = list(refs)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert planned(shuffled, []) == first
    assert [ref.uri for ref in first[1]] == sorted({ref.uri for ref in refs}, key=str.encode)
    assert set(first[1]) <= set(refs), "one of the rows listed, not a mixture"


def test_nothing_listed() -> None:
    assert planned([], [(ImageRef("s3://b/a.jpg"), "labelled", RUN_IDS[0])]) == (PlanCounts(0, 0, 0, 0, 0), [])


def test_error_of_the_listing_passes() -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from listing([ImageRef("s3://b/a.jpg")])
        raise SourceError("source s3://b: gone")

    with pytest.raises(SourceError, match="source s3://b: gone"), classified(broken(), [], True):
        pass


@pytest.mark.parametrize("rows", [1, 7, 99, 100, 101, 1000])
def test_batches_have_the_size_asked_for(rows: int) -> None:
    refs = [ImageRef(f"s3://b/{n:03d}.jpg") for n in range(100)]
    with classified(listing(refs), [], True) as result:
        sizes = [batch.num_rows for batch in result.batches(rows)]
        assert sum(sizes) == 100
        assert set(sizes[:-1]) <= {rows}


def test_local_files_go_with_the_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with classified(listing([ImageRef("s3://b/a.jpg")]), [], True) as result:
        assert [batch.num_rows for batch in result.batches(10)] == [1]
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
