"""Outcomes become rows: the columns against plain Python, and what is refused."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchdet.records import FailedImage, ImageFacts, ImageOutcome, ImageRef, LabelledImage, Shard
from batchdet.storage.schema import IMAGES, SHARD_DETECTIONS
from batchdet.storage.tables import count_failures, shard_tables
from tests.storage.made import CATEGORIES, NOON, failed, labelled, outcomes, refs

SHARD = Shard("20260517T120000Z-00000001", 7, refs(20))


def plain_images(outcome: ImageOutcome) -> dict[str, object]:
    ref, facts = outcome.ref, outcome.facts
    good = isinstance(outcome, LabelledImage)
    return {
        "image_uri": ref.uri,
        "etag": ref.etag,
        "size_bytes": ref.size_bytes,
        "last_modified": ref.last_modified,
        "width": facts.width,
        "height": facts.height,
        "exif_orientation": facts.exif_orientation,
        "status": "labelled" if good else "failed",
        "failure_stage": None if good else outcome.stage,
        "failure_code": None if good else outcome.code,
        "failure_reason": None if good else outcome.reason,
        "num_detections": sum(outcome.accepted.tolist()) if good else None,
        "num_candidates": len(outcome.scores) if good else None,
        "hit_detection_cap": outcome.hit_detection_cap if good else None,
        "content_digest": facts.content_digest,
        "decoder": facts.decoder,
        "shard_id": 7,
        "labelled_at": NOON,
        "copied_from": None,
        "failed_runs": None if good else 1,
    }


def plain_detections(outcome: ImageOutcome) -> list[dict[str, object]]:
    if isinstance(outcome, FailedImage):
        return []
    return [
        {
            "image_uri": outcome.ref.uri,
            "detection_index": index,
            "label": int(outcome.labels[index]),
            "category": CATEGORIES[outcome.labels[index]],
            "score": float(outcome.scores[index]),
            **dict(zip(("xmin", "ymin", "xmax", "ymax"), outcome.boxes[index].tolist(), strict=True)),
            "image_width": outcome.facts.width,
            "image_height": outcome.facts.height,
            "accepted": bool(outcome.accepted[index]),
            "shard_id": 7,
        }
        for index in range(len(outcome.scores))
    ]


@given(counts=st.lists(st.integers(-1, 5), min_size=1, max_size=20), order=st.randoms(use_true_random=False))
def test_rows_equal_plain_python(counts: list[int], order: object) -> None:
    images = refs(len(counts))
    made: list[ImageOutcome] = [
        failed(ref) if count < 0 else labelled(ref, np.linspace(1, 0.1, count).tolist())
        for ref, count in zip(images, counts, strict=True)
    ]
    shuffled = list(made)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    tables = shard_tables(replace(SHARD, images=images), shuffled, CATEGORIES, NOON)
    assert tables.images.schema == IMAGES
    assert tables.detections.schema == SHARD_DETECTIONS
    assert tables.images.to_pylist() == [plain_images(outcome) for outcome in made]
    assert tables.detections.to_pylist() == [row for outcome in made for row in plain_detections(outcome)]


def test_a_read_size_fills_in_for_a_missing_one_only() -> None:
    known, unknown = ImageRef("s3://b/a.jpg", size_bytes=5), ImageRef("s3://b/b.jpg")
    shard = Shard("r", 7, (known, unknown))
    tables = shard_tables(shard, [labelled(known, []), labelled(unknown, [])], CATEGORIES, NOON)
    assert tables.images["size_bytes"].to_pylist() == [5, 777]


def test_order_is_that_of_bytes() -> None:
    images = tuple(ImageRef(f"s3://b/{name}.jpg") for name in ("\U0001f600", "\uffee", "a", "Z"))
    made = [labelled(ref, [0.9]) for ref in images]
    tables = shard_tables(Shard("r", 0, images), made, CATEGORIES, NOON)
    expected = sorted((ref.uri for ref in images), key=str.encode)
    assert tables.images["image_uri"].to_pylist() == tables.detections["image_uri"].to_pylist() == expected


def test_no_detections_at_all() -> None:
    tables = shard_tables(SHARD, [failed(ref) for ref in SHARD.images], CATEGORIES, NOON)
    assert (tables.images.num_rows, tables.detections.num_rows) == (20, 0)
    assert tables.detections.schema == SHARD_DETECTIONS


def test_the_dictionary_holds_only_categories_that_occur() -> None:
    categories = ("__background__", *(f"c{n}" for n in range(1, 1000)))
    made = [labelled(ref, []) for ref in SHARD.images]
    made[3] = replace(labelled(made[3].ref, [0.9, 0.8, 0.7]), labels=np.array([998, 5, 998]))
    tables = shard_tables(SHARD, made, categories, NOON)
    chunk = tables.detections["category"].chunk(0)
    assert isinstance(chunk, pa.DictionaryArray)
    assert chunk.dictionary.to_pylist() == ["c5", "c998"]
    assert chunk.to_pylist() == ["c998", "c5", "c998"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda made: made[:-1], "missing .*0019.jpg"),
        (lambda made: [*made, made[0]], "got 21 outcomes for 20"),
        (lambda made: [*made[:-1], made[0]], "got 20 outcomes for 19"),
        (lambda made: [*made[:-1], labelled(ImageRef("s3://x/y.jpg"), [])], "foreign .*s3://x/y.jpg"),
        (lambda made: [labelled(made[0].ref, [0.1, 0.2]), *made[1:]], "scores increase inside an image"),
        (
            lambda made: [replace(labelled(made[0].ref, [0.9]), labels=np.array([0])), *made[1:]],
            r"labels 1\.\.2, got 0",
        ),
        (lambda made: [replace(labelled(made[0].ref, [0.9]), labels=np.array([3])), *made[1:]], r"got 1\.\.3"),
    ],
)
def test_bugs_are_refused(change: object, reason: str) -> None:
    made = outcomes(SHARD)
    with pytest.raises(ValueError, match=f"shard 7 of 20260517T120000Z-00000001: .*{reason}"):
        shard_tables(SHARD, change(made), CATEGORIES, NOON)  # type: ignore[operator]


def test_scores_may_rise_from_one_image_to_the_next() -> None:
    made = [labelled(ref, [0.1 + n / 100, 0.05]) for n, ref in enumerate(SHARD.images)]
    assert shard_tables(SHARD, made, CATEGORIES, NOON).detections.num_rows == 40


def test_failures_are_counted_by_stage_and_code() -> None:
    one, two, three = refs(3)
    read = FailedImage(three, "read", "not_found", "gone", ImageFacts())
    assert count_failures([read, failed(one), failed(two), labelled(one, [])]) == {
        "decode:truncated": 2,
        "read:not_found": 1,
    }
