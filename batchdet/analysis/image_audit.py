"""What an audit asks of the image rows of one shard. Knows no detections but their counts.

Shape shorthand: N rows of the shard's images file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchdet.analysis.receipt import Findings
from batchdet.records import BoolArray, Shard
from batchdet.storage.schema import LISTING

COUNTED = ("num_detections", "num_candidates", "hit_detection_cap")
DECODED = ("width", "height", "content_digest", "decoder")
FAILURE = ("failure_stage", "failure_code", "failure_reason")
STAGES = ("read", "decode", "detect")


@dataclass(frozen=True, slots=True)
class _Rows:
    """A shard's images, and whom to tell."""

    table: pa.Table
    uris: Sequence[str | None]
    where: str
    findings: Findings

    def complain(self, check: str, wrong: BoolArray, finding: str) -> None:
        """The first wrong row by its image, and how many there are."""
        found = np.flatnonzero(wrong)
        if len(found):
            self.findings.complain(check, f"{self.where}: {self.uris[found[0]]} {finding}", len(found))


def check_images(images: pa.Table, shard_id: int, where: str, findings: Findings, *, is_gone: bool = False) -> None:
    """Check what the rows say of themselves, and add them to the counts.

    Args:
        images: rows of `schema.IMAGES`.
        shard_id: which shard they are of.
        where: the file, for the findings.
        findings: added to.
        is_gone: the shard is one of images that are no longer listed.
    """
    rows = _Rows(images, images.column("image_uri").to_pylist(), where, findings)
    wrong = false_or_null(pc.equal(images.column("shard_id"), pa.scalar(shard_id, pa.int32())))
    rows.complain("rows carry their shard_id", wrong, f"has another shard_id than {shard_id}")
    rows.complain("images are in order", falls(rows.uris), "lies after a greater image_uri")
    labelled = _is(images, "status", "labelled")
    failed = _is(images, "status", "failed")
    findings.num_labelled += int(labelled.sum())
    deleted = _is(images, "status", "deleted")
    findings.num_failed += int(failed.sum())
    findings.num_deleted += int(deleted.sum())
    findings.num_empty += int((labelled & _is(images, "num_detections", 0)).sum())
    rows.complain("statuses are sound", deleted != is_gone, "is deleted" if not is_gone else "is not deleted")
    for finding, found in _unsound(images, labelled, failed, deleted).items():
        rows.complain("statuses are sound", found, finding)


def check_coverage(shard: Shard, images: pa.Table, where: str, findings: Findings) -> None:
    """Check that the rows are the planned images, each once, with the facts that the plan has of them."""
    check = "every image once"
    planned = [ref.uri for ref in shard.images]
    wanted = set(planned)
    seen: set[str | None] = set()
    for uri in images.column("image_uri").to_pylist():
        if uri in seen:
            findings.complain(check, f"{where}: {uri} has two rows")
        elif uri not in wanted:
            findings.complain(check, f"{where}: {uri} is not in this shard of the plan")
        seen.add(uri)
    for uri in planned:
        if uri not in seen:
            findings.complain(check, f"{where}: {uri} has no row")
        # the plan is sorted, so a URI that does not rise is in it twice
        if findings.last_uri is not None and uri.encode() <= findings.last_uri.encode():
            findings.complain(check, f"{where}: the plan has {uri} after {findings.last_uri}")
        findings.last_uri = uri
    _check_facts(shard, _Rows(images, images.column("image_uri").to_pylist(), where, findings))


def falls(uris: Sequence[str | None]) -> BoolArray:
    """[N] where a URI is less than the one before it, in UTF-8 byte order."""
    keys = [(uri or "").encode() for uri in uris]
    return np.array([False, *(after < before for before, after in pairwise(keys))], np.bool_)[: len(keys)]


def false_or_null(mask: Any) -> BoolArray:
    """[N] where a mask is not true."""
    found: BoolArray = np.asarray(pc.fill_null(mask, False), np.bool_)
    return ~found


def _check_facts(shard: Shard, rows: _Rows) -> None:
    images: Any = rows.table
    place: Any = pc.index_in(images.column("image_uri"), pa.array([ref.uri for ref in shard.images], pa.string()))
    is_planned = np.asarray(pc.is_valid(place), np.bool_)
    for field in list(LISTING)[1:]:
        planned: Any = pa.array([getattr(ref, field.name) for ref in shard.images], field.type).take(place)
        found = images.column(field.name)
        # a size the listing did not know is the size read
        unknown = pc.is_null(planned) if field.name == "size_bytes" else pc.and_(pc.is_null(planned), pc.is_null(found))
        wrong = is_planned & false_or_null(pc.equal(found, planned)) & false_or_null(unknown)
        rows.complain("listed facts are the plan's", wrong, f"has another {field.name}")


def _unsound(images: pa.Table, labelled: BoolArray, failed: BoolArray, deleted: BoolArray) -> dict[str, BoolArray]:
    """[N] of every way a row can contradict its status."""
    found = {"has no status of labelled, failed or deleted": ~(labelled | failed | deleted)}
    for name in (*COUNTED, *FAILURE, *DECODED):
        found[f"(deleted) has a {name}"] = deleted & ~_any_null(images, (name,))
    found["(labelled) lacks its counts"] = labelled & _any_null(images, COUNTED)
    for name in DECODED:
        found[f"(labelled) lacks {name}"] = labelled & _any_null(images, (name,))
    for name in FAILURE:
        found[f"(labelled) has a {name}"] = labelled & ~_any_null(images, (name,))
        found[f"(failed) lacks {name}"] = failed & _any_null(images, (name,))
    stages = pc.is_in(images.column("failure_stage"), value_set=pa.array(STAGES, pa.string()))
    found["(failed) has an unknown failure_stage"] = failed & ~_any_null(images, FAILURE[:1]) & false_or_null(stages)
    for name in (*COUNTED, "copied_from"):
        found[f"(failed) has a {name}"] = failed & ~_any_null(images, (name,))
    found["(labelled) has failed_runs"] = labelled & ~_any_null(images, ("failed_runs",))
    for name in ("width", "height"):
        found[f"has a {name} under 1"] = _true(pc.less(images.column(name), pa.scalar(1, pa.int32())))
    found["lacks labelled_at"] = _any_null(images, ("labelled_at",))
    return found


def _any_null(images: pa.Table, names: tuple[str, ...]) -> BoolArray:
    masks = [np.asarray(images.column(name).is_null(), np.bool_) for name in names]
    found: BoolArray = np.logical_or.reduce(masks)
    return found


def _is(images: pa.Table, name: str, value: object) -> BoolArray:
    return _true(pc.equal(images.column(name), pa.scalar(value, images.schema.field(name).type)))


def _true(mask: Any) -> BoolArray:
    return ~false_or_null(mask)
