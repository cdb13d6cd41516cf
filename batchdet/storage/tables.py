"""Outcomes of a shard become the rows of its two tables, column by column. Knows no files and no model.

Shape shorthand: N images of the shard, D detections of all of them together.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from batchdet.records import DeletedImage, FailedImage, ImageOutcome, IntArray, LabelledImage, Shard
from batchdet.storage.schema import IMAGES, SHARD_DETECTIONS

_STATUS = {LabelledImage: "labelled", FailedImage: "failed", DeletedImage: "deleted"}


@dataclass(frozen=True, slots=True)
class ShardTables:
    """The rows of one shard: `images` sorted by image_uri, `detections` by image_uri, then -score."""

    images: pa.Table
    detections: pa.Table


def shard_tables(
    shard: Shard, outcomes: Sequence[ImageOutcome], categories: Sequence[str], labelled_at: datetime
) -> ShardTables:
    """Both tables of a shard.

    Args:
        shard: as read from the plan.
        outcomes: exactly one per image of the shard, in any order.
        categories: names in label order.
        labelled_at: timezone-aware; the one column that a retry does not repeat.

    Raises:
        ValueError: the outcomes do not cover the shard, scores increase inside an image, or a label is no category.
    """
    ordered = _in_shard_order(shard, outcomes)
    return ShardTables(
        images=_images_table(shard, ordered, labelled_at), detections=_detections_table(shard, ordered, categories)
    )


def count_failures(outcomes: Sequence[ImageOutcome]) -> dict[str, int]:
    """Failed images by `stage:code`, sorted by that key."""
    failed = Counter(f"{outcome.stage}:{outcome.code}" for outcome in outcomes if isinstance(outcome, FailedImage))
    return dict(sorted(failed.items()))


def _in_shard_order(shard: Shard, outcomes: Sequence[ImageOutcome]) -> list[ImageOutcome]:
    by_uri = {outcome.ref.uri: outcome for outcome in outcomes}
    wanted = {ref.uri for ref in shard.images}
    if len(by_uri) != len(outcomes) or by_uri.keys() != wanted:
        missing, foreign = sorted(wanted - by_uri.keys()), sorted(by_uri.keys() - wanted)
        raise ValueError(
            f"shard {shard.shard_id} of {shard.run_id}: expected one outcome for each of {len(wanted)} images, got "
            f"{len(outcomes)} outcomes for {len(by_uri)}; missing {missing[:3]}, foreign {foreign[:3]}"
        )
    return [by_uri[ref.uri] for ref in sorted(shard.images, key=lambda ref: ref.uri.encode())]


def _images_table(shard: Shard, outcomes: Sequence[ImageOutcome], labelled_at: datetime) -> pa.Table:
    refs = [outcome.ref for outcome in outcomes]
    facts = [outcome.facts for outcome in outcomes]
    failed = [outcome if isinstance(outcome, FailedImage) else None for outcome in outcomes]
    labelled = [outcome if isinstance(outcome, LabelledImage) else None for outcome in outcomes]
    count = len(refs)
    columns = {
        "image_uri": [ref.uri for ref in refs],
        "etag": [ref.etag for ref in refs],
        # the listed size, not the size read: an object that changed in between must look changed to the next plan
        "size_bytes": [
            fact.size_bytes if ref.size_bytes is None else ref.size_bytes for ref, fact in zip(refs, facts, strict=True)
        ],
        "last_modified": [ref.last_modified for ref in refs],
        "width": [fact.width for fact in facts],
        "height": [fact.height for fact in facts],
        "exif_orientation": [fact.exif_orientation for fact in facts],
        "status": [_STATUS[type(outcome)] for outcome in outcomes],
        "failure_stage": [failure and failure.stage for failure in failed],
        "failure_code": [failure and failure.code for failure in failed],
        "failure_reason": [failure and failure.reason for failure in failed],
        "num_detections": [None if image is None else int(np.count_nonzero(image.accepted)) for image in labelled],
        "num_candidates": [None if image is None else len(image.scores) for image in labelled],
        "hit_detection_cap": [None if image is None else image.hit_detection_cap for image in labelled],
        "content_digest": [fact.content_digest for fact in facts],
        "decoder": [fact.decoder for fact in facts],
        "shard_id": np.full(count, shard.shard_id, np.int32),
        "labelled_at": [labelled_at] * count,
        "copied_from": [image and image.copied_from for image in labelled],
        "failed_runs": [failure and failure.ref.failed_runs + 1 for failure in failed],
    }
    return _table(columns, IMAGES)


def _detections_table(shard: Shard, outcomes: Sequence[ImageOutcome], categories: Sequence[str]) -> pa.Table:
    images = [outcome for outcome in outcomes if isinstance(outcome, LabelledImage) and len(outcome.scores)]
    counts = np.array([len(image.scores) for image in images], np.int64)
    owner = pa.array(np.repeat(np.arange(len(images)), counts), pa.int64())
    index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    boxes = _join([image.boxes for image in images], np.float32, (0, 4))
    scores = _join([image.scores for image in images], np.float32, (0,))
    labels = _join([image.labels for image in images], np.int64, (0,))
    _check_rows(shard, scores, index, labels, len(categories))
    columns = {
        "image_uri": pa.DictionaryArray.from_arrays(
            owner.cast(pa.int32()), pa.array([image.ref.uri for image in images], pa.string())
        ),
        "detection_index": index.astype(np.int32),
        "label": labels.astype(np.int32),
        "category": _categories(labels, categories),
        "score": scores,
        **{name: np.ascontiguousarray(boxes[:, side]) for side, name in enumerate(("xmin", "ymin", "xmax", "ymax"))},
        "image_width": pa.array([image.facts.width for image in images], pa.int32()).take(owner),
        "image_height": pa.array([image.facts.height for image in images], pa.int32()).take(owner),
        "accepted": _join([image.accepted for image in images], np.bool_, (0,)),
        "shard_id": np.full(len(owner), shard.shard_id, np.int32),
    }
    return _table(columns, SHARD_DETECTIONS)


def _table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    arrays = [columns[field.name] for field in schema]
    return pa.table(
        [
            column if isinstance(column, pa.Array) else pa.array(column, field.type)
            for column, field in zip(arrays, schema, strict=True)
        ],
        schema=schema,
    )


def _join(parts: Sequence[np.ndarray], dtype: type, empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(empty, dtype)


def _check_rows(shard: Shard, scores: np.ndarray, index: np.ndarray, labels: IntArray, num_categories: int) -> None:
    if np.any((np.diff(scores) > 0) & (index[1:] > 0)):
        raise ValueError(f"shard {shard.shard_id} of {shard.run_id}: scores increase inside an image")
    if len(labels) and not (labels.min() > 0 and labels.max() < num_categories):
        raise ValueError(
            f"shard {shard.shard_id} of {shard.run_id}: expected labels 1..{num_categories - 1}, got "
            f"{labels.min()}..{labels.max()}"
        )


def _categories(labels: IntArray, categories: Sequence[str]) -> "pa.DictionaryArray[Any, Any]":
    """Names of the labels; the dictionary holds only those that occur."""
    used, position = np.unique(labels, return_inverse=True)
    names = pa.array([categories[label] for label in used.tolist()], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(position, pa.int32()), names)
