"""What becomes of every listed and every known image: DuckDB's answer against a plain loop."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet.config import PlanConfig
from batchdet.errors import SourceError
from batchdet.records import ImageRef, Twin
from batchdet.storage.classify import MAX_TWINS, PARTS, Comparison, PlanCounts, classified
from batchdet.storage.schema import KNOWN, LABELLED_BYTES
from tests.storage.made import NOON, listing

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
RULES = st.builds(
    PlanConfig,
    retry_failed=st.booleans(),
    max_retries=st.integers(0, 2),
    relabel_stale=st.booleans(),
    delete_missing=st.booleans(),
)
DEFAULTS = PlanConfig()


@dataclass(frozen=True)
class Known:
    """A row of an earlier run."""

    ref: ImageRef
    status: str
    stage: str | None
    failed_runs: int | None
    run_id: str


@st.composite
def known_rows(draw: st.DrawFn) -> list[Known]:
    """At most one row per image and run, as law 2 has it, in any order."""
    statuses = st.sampled_from(["labelled", "failed", "deleted"])
    counts, stages = st.sampled_from([None, 1, 2, 3]), st.sampled_from([None, "read", "decode", "detect"])
    row = st.builds(Known, REFS, statuses, stages, counts, st.sampled_from(RUN_IDS))
    rows = draw(st.lists(row, max_size=15, unique_by=lambda known: (known.ref.uri, known.run_id)))
    return draw(st.permutations(rows))


def known_batches(rows: list[Known]) -> Iterator[pa.RecordBatch]:
    for row in rows:
        values = (*astuple(row.ref)[:4], row.status, row.stage, row.failed_runs, row.run_id)
        arrays = [pa.array([value], field.type) for value, field in zip(values, KNOWN, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=KNOWN)


def differ(left: object, right: object) -> bool:
    return left is not None and right is not None and left != right


def latest(known: list[Known]) -> dict[str, Known]:
    return {row.ref.uri: row for row in sorted(known, key=lambda row: row.run_id)}


def times_failed(old: Known, same_model: frozenset[str] | None) -> int:
    """How often the bytes failed, as far as it concerns this run's model."""
    is_same = same_model is None or old.run_id in same_model
    return (old.failed_runs or 1) if is_same or old.stage != "detect" else 0


def oracle(ref: ImageRef, old: Known | None, rules: PlanConfig, same_model: frozenset[str] | None) -> str:
    if old is None or old.status == "deleted":
        return "new"
    if ref.etag is not None and old.ref.etag is not None:
        changed = ref.etag != old.ref.etag
    else:
        changed = differ(ref.size_bytes, old.ref.size_bytes) or differ(ref.last_modified, old.ref.last_modified)
    if changed:
        return "changed"
    if old.status == "failed":
        if not rules.retry_failed:
            return "unchanged"
        return "failed" if times_failed(old, same_model) <= rules.max_retries else "quarantined"
    is_stale = same_model is not None and old.run_id not in same_model
    return "stale" if is_stale and rules.relabel_stale else "unchanged"


def covered(uri: str) -> bool:
    return "a" in uri.removesuffix(".jpg")


def planned(
    refs: Iterable[ImageRef],
    known: list[Known],
    rules: PlanConfig = DEFAULTS,
    comparison: Comparison = Comparison(),  # noqa: B008 - frozen
) -> tuple[PlanCounts, dict[str, list[ImageRef]]]:
    with classified(listing(refs, batch=2), known_batches(known), rules, comparison) as result:
        result.find_twins()
        parts = {}
        for part in PARTS:
            rows = [row for batch in result.batches(part, 3) for row in batch.to_pylist()]
            parts[part] = [
                ImageRef(*list(row.values())[:5], twins=tuple(Twin(**twin) for twin in row["twins"] or ()))
                for row in rows
            ]
        return result.counts, parts


@settings(max_examples=80, deadline=None)
@given(
    refs=st.lists(REFS, max_size=9, unique_by=lambda ref: ref.uri),
    known=known_rows(),
    rules=RULES,
    same_model=st.none() | st.frozensets(st.sampled_from(RUN_IDS)),
    covers=st.sampled_from([None, covered]),
)
def test_equals_a_plain_loop(
    refs: list[ImageRef], known: list[Known], rules: PlanConfig, same_model: frozenset[str] | None, covers: object
) -> None:
    old = latest(known)
    classes = {ref: oracle(ref, old.get(ref.uri), rules, same_model) for ref in refs}
    listed = {ref.uri for ref in refs}
    gone = [
        row.ref
        for uri, row in old.items()
        if uri not in listed and row.status != "deleted" and rules.delete_missing and covers and covered(uri)
    ]
    counts, parts = planned(refs, known, rules, Comparison(same_model, covers))  # type: ignore[arg-type]
    found = list(classes.values())
    resting = ("unchanged", "quarantined")
    assert counts == PlanCounts(
        num_listed=len(refs),
        num_new=found.count("new"),
        num_changed=found.count("changed"),
        num_failed_retry=found.count("failed"),
        num_unchanged=found.count("unchanged") + found.count("quarantined"),
        num_undated=sum((ref.etag, ref.size_bytes, ref.last_modified) == (None, None, None) for ref in refs),
        bytes_planned=sum(ref.size_bytes or 0 for ref, kind in classes.items() if kind not in resting),
        num_stale=found.count("stale"),
        num_quarantined=found.count("quarantined"),
        num_deleted=len(gone),
    )
    wanted = {
        "fresh": [
            replace(ref, failed_runs=times_failed(old[ref.uri], same_model) if kind == "failed" else 0)
            for ref, kind in classes.items()
            if kind in ("new", "changed", "failed")
        ],
        "stale": [ref for ref, kind in classes.items() if kind == "stale"],
        "deleted": gone,
    }
    for part, expected in wanted.items():
        assert parts[part] == sorted(expected, key=lambda ref: ref.uri.encode()), f"{part}, in UTF-8 byte order"
    assert counts.num_planned == len(parts["fresh"]) + len(parts["stale"])


@settings(max_examples=20, deadline=None)
@given(refs=st.lists(REFS, min_size=1, max_size=12), order=st.randoms(use_true_random=False))
def test_a_uri_listed_twice_counts_once_and_order_is_nothing(refs: list[ImageRef], order: object) -> None:
    first = planned(refs, [])
    shuffled = list(refs)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert planned(shuffled, []) == first
    fresh = first[1]["fresh"]
    assert [ref.uri for ref in fresh] == sorted({ref.uri for ref in refs}, key=str.encode)
    assert set(fresh) <= set(refs), "one of the rows listed, not a mixture"


def labelled_bytes(rows: list[tuple[ImageRef, Twin]]) -> Iterator[pa.RecordBatch]:
    for ref, twin in rows:
        values = (*astuple(twin), ref.etag, ref.size_bytes)
        arrays = [pa.array([value], field.type) for value, field in zip(values, LABELLED_BYTES, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=LABELLED_BYTES)


TWINS = st.builds(
    Twin, URIS, st.sampled_from(RUN_IDS), st.integers(0, 2), st.sampled_from([f"sha256:{n}" for n in range(4)])
)


@settings(max_examples=60, deadline=None)
@given(
    refs=st.lists(REFS, max_size=6, unique_by=lambda ref: ref.uri),
    labelled=st.lists(st.tuples(REFS, TWINS), max_size=12),
)
def test_whatever_may_hold_the_same_bytes_is_a_twin(
    refs: list[ImageRef], labelled: list[tuple[ImageRef, Twin]]
) -> None:
    _, parts = planned(refs, [], comparison=Comparison(labelled_bytes=lambda: labelled_bytes(labelled)))
    for ref in parts["fresh"]:
        alike = {
            twin.content_digest
            for other, twin in labelled
            if ref.size_bytes is not None and ref.size_bytes == other.size_bytes
        }
        tagged = [twin for other, twin in labelled if ref.etag is not None and ref.etag == other.etag]
        digests = {twin.content_digest for twin in ref.twins}
        assert alike <= digests
        assert not tagged or digests & {twin.content_digest for twin in tagged}
        assert digests <= alike | {twin.content_digest for twin in tagged}
        assert set(ref.twins) <= {twin for _, twin in labelled}


@pytest.mark.parametrize(("many", "num_twins"), [(MAX_TWINS, MAX_TWINS), (MAX_TWINS + 1, 1)])
def test_a_size_that_many_have_tells_no_twin_and_an_equal_etag_always(many: int, num_twins: int) -> None:
    labelled = [
        (ImageRef("", etag=str(n), size_bytes=9), Twin(f"s3://b/{n}.jpg", RUN_IDS[n >= 9], 0, f"sha256:{n}"))
        for n in range(many)
    ]
    source = Comparison(labelled_bytes=lambda: labelled_bytes(labelled))
    _, parts = planned([ImageRef("s3://b/new.jpg", etag="7", size_bytes=9)], [], comparison=source)
    twins = parts["fresh"][0].twins
    assert len(twins) == num_twins
    assert "sha256:7" in {twin.content_digest for twin in twins}


def test_what_is_wanted_is_hashed_a_few_times_however_many_shards_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = 0
    is_in = pc.is_in

    def counting(values: Any, value_set: Any) -> Any:
        nonlocal hashed
        hashed += len(value_set)
        return is_in(values, value_set)

    monkeypatch.setattr(pc, "is_in", counting)
    images, shards = 50, 200
    refs = [ImageRef(f"s3://b/{n}.jpg", etag=f"e{n}", size_bytes=n) for n in range(images)]
    labelled = [
        (ImageRef("", etag=f"e{n}", size_bytes=n), Twin(f"s3://b/old/{n}.jpg", RUN_IDS[0], n, f"sha256:{n}"))
        for n in range(shards)
    ]
    _, parts = planned(refs, [], comparison=Comparison(labelled_bytes=lambda: labelled_bytes(labelled)))
    assert all(ref.twins for ref in parts["fresh"])
    assert hashed == 2 * images


def test_nothing_listed() -> None:
    assert planned([], [Known(ImageRef("s3://b/a.jpg"), "labelled", None, None, RUN_IDS[0])]) == (
        PlanCounts(0, 0, 0, 0, 0),
        {part: [] for part in PARTS},
    )


def test_error_of_the_listing_passes() -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from listing([ImageRef("s3://b/a.jpg")])
        raise SourceError("source s3://b: gone")

    with pytest.raises(SourceError, match="source s3://b: gone"), classified(broken(), [], DEFAULTS, Comparison()):
        pass


@pytest.mark.parametrize("rows", [1, 7, 99, 100, 101, 1000])
def test_batches_have_the_size_asked_for(rows: int) -> None:
    refs = [ImageRef(f"s3://b/{n:03d}.jpg") for n in range(100)]
    with classified(listing(refs), [], DEFAULTS, Comparison()) as result:
        sizes = [batch.num_rows for batch in result.batches("fresh", rows)]
        assert sum(sizes) == 100
        assert set(sizes[:-1]) <= {rows}


@pytest.mark.parametrize("shared", ["s3://b/", "s3://b/e", "s3://b/写\U0001f600\u200d", "s3://b/it's\0%"])
def test_order_is_of_utf8_bytes_whatever_all_uris_begin_with(shared: str) -> None:
    ends = ("", "a", "A", "\u0301", "\u0301a", "\U0001f600", "\uffee", "\0", "'", " ")
    for uris in ([shared], [shared + end for end in ends]):
        with classified(listing([ImageRef(uri) for uri in uris]), [], DEFAULTS, Comparison()) as result:
            found = [uri for batch in result.batches("fresh", 3) for uri in batch.column("image_uri").to_pylist()]
        assert found == sorted(uris, key=str.encode)


def test_local_files_go_with_the_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with classified(listing([ImageRef("s3://b/a.jpg")]), [], DEFAULTS, Comparison()) as result:
        assert [batch.num_rows for batch in result.batches("fresh", 10)] == [1]
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
