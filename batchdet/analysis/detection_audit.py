"""What an audit asks of the detection rows of one shard, column by column. Knows no plan and no files.

Shape shorthand: N images of the shard, D stored detections of all of them together, S images that have any.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchdet.analysis.image_audit import falls, false_or_null
from batchdet.analysis.receipt import Findings
from batchdet.config import PolicyConfig
from batchdet.records import BoolArray, FloatArray, IntArray
from batchdet.storage.plan import PlanHeader

SIDES = ("xmin", "ymin", "xmax", "ymax")
SLACK_PX = 1e-3
SLACK = 1e-6
"""A box clipped to the resized image may leave the original by a rounding: so many pixels, and this share of a side."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a run says its detections obey.

    Attributes:
        categories: names in label order; [0] is the background.
        score_floor: no stored score is under it.
        thresholds: [K] float32 by label; no accepted score is under its label's.
        min_box_side: pixels; no accepted box has a shorter side.
    """

    categories: tuple[str, ...]
    score_floor: float
    thresholds: FloatArray
    min_box_side: float


def read_claims(header: PlanHeader) -> Claims:
    """The claims of a run's plan.

    Raises:
        ValueError, KeyError, TypeError: the plan's policy or config is damaged.
    """
    policy = PolicyConfig.model_validate_json(header.policy)
    categories = header.model.categories
    thresholds = [policy.score_thresholds.get(name, policy.score_threshold) for name in categories]
    floor = float(json.loads(header.config)["model"]["score_floor"])
    return Claims(categories, floor, np.array(thresholds, np.float32), policy.min_box_side)


@dataclass(frozen=True, slots=True)
class _Rows:
    """A shard's detections.

    Attributes:
        owner: [D] which of `names` a row belongs to.
        names: [S] image_uri.
        boxes: [D, 4] xyxy pixels.
    """

    table: pa.Table
    owner: IntArray
    names: Sequence[str | None]
    scores: FloatArray
    boxes: FloatArray
    accepted: BoolArray
    where: str
    findings: Findings

    def complain(self, check: str, wrong: BoolArray, finding: str) -> None:
        rows = np.flatnonzero(wrong)
        if len(rows):
            place = f"{self.where}: row {rows[0]}, of {self.names[self.owner[rows[0]]]}"
            self.findings.complain(check, f"{place}{finding and ': '}{finding}", len(rows))


def check_detections(
    images: pa.Table, detections: pa.Table, shard_id: int, claims: Claims, where: str, findings: Findings
) -> None:
    """Check the rows against their images and against what the run claims, and add them to the counts.

    Args:
        images: rows of `schema.IMAGES`.
        detections: rows of `schema.DETECTIONS`, none with a null.
        shard_id: which shard they are of.
        claims: what the run says of them.
        where: the detections file, for the findings.
        findings: added to.
    """
    uris = detections.column("image_uri").combine_chunks().dictionary_encode()
    rows = _Rows(
        table=detections,
        owner=np.asarray(uris.indices, np.int64),
        names=uris.dictionary.to_pylist(),
        scores=np.asarray(detections.column("score"), np.float32),
        boxes=np.stack([np.asarray(detections.column(side), np.float32) for side in SIDES], axis=1),
        accepted=np.asarray(detections.column("accepted"), np.bool_),
        where=where,
        findings=findings,
    )
    findings.num_candidates += len(rows.owner)
    findings.num_detections += int(rows.accepted.sum())
    _check_counts(rows, images)
    _check_order(rows)
    wrong = np.asarray(detections.column("shard_id"), np.int64) != shard_id
    rows.complain("rows carry their shard_id", wrong, f"another shard_id than {shard_id}")
    _check_values(rows, claims)
    _check_frame(rows, images)


def _check_counts(rows: _Rows, images: pa.Table) -> None:
    # [D] rows become [S] counts
    size = len(rows.names)
    stored = dict(zip(rows.names, np.bincount(rows.owner, minlength=size).tolist(), strict=True))
    passed = dict(zip(rows.names, np.bincount(rows.owner[rows.accepted], minlength=size).tolist(), strict=True))
    columns = (images.column(name).to_pylist() for name in ("image_uri", "status", "num_candidates", "num_detections"))
    belong = "detections belong to labelled images"
    for uri, status, num_candidates, num_detections in zip(*columns, strict=True):
        found = (stored.pop(uri, 0), passed.get(uri, 0))
        if status == "labelled" and found != (num_candidates, num_detections):
            rows.findings.complain(
                "counts are the detections'",
                f"{rows.where}: {uri} has {found[0]} stored and {found[1]} accepted, its row states {num_candidates} "
                f"and {num_detections}",
            )
        elif status != "labelled" and found[0]:
            rows.findings.complain(belong, f"{rows.where}: {uri} is {status}")
    for uri in stored:
        rows.findings.complain(belong, f"{rows.where}: {uri} is no image of the shard")


def _check_order(rows: _Rows) -> None:
    """Images in the order of their URIs; rows of one together, numbered from 0, scores not rising."""
    check = "detections are in order"
    owner, count = rows.owner, len(rows.owner)
    position = np.arange(count)
    first = np.ones(count, np.bool_)
    first[1:] = owner[1:] != owner[:-1]
    place = position - np.maximum.accumulate(np.where(first, position, 0))
    rising = np.zeros(count, np.bool_)
    rising[1:] = (rows.scores[1:] > rows.scores[:-1]) & ~first[1:]
    if first.sum() != len(rows.names):
        rows.findings.complain(check, f"{rows.where}: rows of one image lie apart")
    wrong = (np.asarray(rows.table.column("detection_index"), np.int64) != place) | rising
    rows.complain(check, wrong, "")
    rows.complain(check, first & falls(rows.names)[owner], "after a greater image_uri")


def _check_values(rows: _Rows, claims: Claims) -> None:
    # np.float32: a threshold means what it meant to the detector
    floor = np.float32(claims.score_floor)
    legal = (rows.scores >= floor) & (rows.scores > 0) & (rows.scores <= 1)
    rows.complain("scores are over the floor", ~legal, f"a score outside ({claims.score_floor:g}, 1]")
    labels = np.asarray(rows.table.column("label"), np.int64)
    known = (labels >= 1) & (labels < len(claims.categories))
    rows.complain("labels are the model's", ~known, f"a label outside 1..{len(claims.categories) - 1}")
    safe = np.where(known, labels, 0)
    named = pa.array(claims.categories, pa.string()).take(pa.array(safe, pa.int64()))
    other = false_or_null(pc.equal(rows.table.column("category").cast(pa.string()), named))
    rows.complain("labels are the model's", known & other, "the category is not the label's")
    passes = rows.scores >= claims.thresholds[safe]
    sides = rows.boxes[:, 2:] - rows.boxes[:, :2]
    passes &= (sides >= np.float32(claims.min_box_side)).all(axis=1)
    rows.complain("accepted ones pass the policy", rows.accepted & ~passes, "accepted against the policy")


def _check_frame(rows: _Rows, images: pa.Table) -> None:
    check = "boxes lie in their image"
    # float64, so that a box of infinities overflows nothing; NaN compares false
    frame, boxes = _frame(rows.table, "image_"), rows.boxes.astype(np.float64)
    place: Any = pc.index_in(pa.array(rows.names, pa.string()), images.column("image_uri").combine_chunks())
    # an image without a row or a size is another check's finding: NaN
    stated = _frame(images.take(place), "")[rows.owner]
    other: BoolArray = np.logical_or.reduce((stated < frame) | (stated > frame), axis=1)
    rows.complain(check, other, "another image size than its image's row")
    low, high = boxes[:, :2], boxes[:, 2:]
    slack = SLACK_PX + SLACK * frame
    inside: BoolArray = np.logical_and.reduce((low >= -slack) & (low <= high) & (high <= frame + slack), axis=1)
    rows.complain(check, ~inside, "a box that is not inside the image")


def _frame(table: pa.Table, prefix: str) -> npt.NDArray[np.float64]:
    """[N, 2] (width, height) of rows, NaN where null."""
    columns = [table.column(f"{prefix}{name}").cast(pa.float64()) for name in ("width", "height")]
    return np.stack([column.to_numpy() for column in columns], axis=1)
