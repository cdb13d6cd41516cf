"""What an audit asks of one shard's two files. Knows no other shard and no run row.

Shape shorthand: N images of the shard, D stored detections of all of them together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchdet.analysis.receipt import Findings
from batchdet.errors import NotFoundError
from batchdet.records import BoolArray, IntArray, Shard
from batchdet.storage.filesystem import Store
from batchdet.storage.plan import RunPlan, read_shard
from batchdet.storage.schema import DETECTIONS, IMAGES


def shard_name(table: str, run_id: str, shard_id: int) -> str:
    """A shard's file of `images` or `detections`, relative to the output."""
    return f"{table}/run_id={run_id}/shard-{shard_id:05d}.parquet"


def check_shard(output: Store, plan: RunPlan, shard_id: int, findings: Findings) -> None:
    """Check a committed shard's files against the plan and each other, and add its counts.

    Raises:
        StorageError: a file cannot be read.
    """
    images = _read(output, plan, "images", shard_id, findings)
    detections = _read(output, plan, "detections", shard_id, findings)
    if images is None:
        return
    where = output.child_uri(shard_name("images", plan.run_id, shard_id))
    _check_coverage(read_shard(output, plan, shard_id), images, where, findings)
    _check_statuses(images, where, findings)
    if detections is not None:
        where = output.child_uri(shard_name("detections", plan.run_id, shard_id))
        _check_detections(images, detections, where, findings)


def _read(output: Store, plan: RunPlan, table: str, shard_id: int, findings: Findings) -> pa.Table | None:
    """The file if it is there and its columns can be relied on."""
    name = shard_name(table, plan.run_id, shard_id)
    uri = output.child_uri(name)
    try:
        read = pq.ParquetFile(pa.BufferReader(output.read_bytes(name))).read()
    except NotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        findings.complain("columns are the schema's", f"{uri} is not Parquet: {' '.join(str(error).split())}")
        return None
    metadata = read.schema.metadata or {}
    for key, want in plan.header.stamp.metadata().items():
        if metadata.get(key) != want:
            found = metadata.get(key, b"missing").decode(errors="replace")
            findings.complain("files carry the run's stamp", f"{uri}: {key.decode()} is {found}, not {want.decode()}")
    schema = IMAGES if table == "images" else DETECTIONS
    if read.schema.equals(schema) and table == "detections" and any(column.null_count for column in read.columns):
        findings.complain("columns are the schema's", f"{uri}: a detection with a null")
        return None
    if not read.schema.equals(schema):
        findings.complain("columns are the schema's", f"{uri}: {_difference(read.schema, schema)}")
        return None
    return read


def _check_coverage(shard: Shard, images: pa.Table, where: str, findings: Findings) -> None:
    check = "every image once"
    planned = [ref.uri for ref in shard.images]
    wanted = set(planned)
    seen: set[str | None] = set()
    for uri in _list(images, "image_uri"):
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
    if any(found != shard.shard_id for found in _list(images, "shard_id")):
        findings.complain(check, f"{where}: rows of another shard_id")


def _check_statuses(images: pa.Table, where: str, findings: Findings) -> None:
    names = ("image_uri", "status", "num_candidates", "num_detections", "failure_stage", "failure_code")
    for uri, status, candidates, detections, stage, code in zip(*(_list(images, name) for name in names), strict=True):
        if status == "labelled":
            findings.num_labelled += 1
            findings.num_empty += detections == 0
            missing = "its counts" if candidates is None or detections is None else None
        elif status == "failed":
            findings.num_failed += 1
            missing = "a stage and a code" if not stage or not code else None
        else:
            missing = "a status of labelled or failed"
        if missing:
            findings.complain("statuses are sound", f"{where}: {uri} ({status}) lacks {missing}")


def _check_detections(images: pa.Table, detections: pa.Table, where: str, findings: Findings) -> None:
    uris = detections.column("image_uri").combine_chunks().dictionary_encode()
    names: Sequence[str | None] = uris.dictionary.to_pylist()
    owner: IntArray = np.asarray(uris.indices, np.int64)
    accepted: BoolArray = np.asarray(detections.column("accepted"), np.bool_)
    findings.num_candidates += len(owner)
    findings.num_detections += int(accepted.sum())
    # [D] rows become [N] counts
    stored = dict(zip(names, np.bincount(owner, minlength=len(names)).tolist(), strict=True))
    passed = dict(zip(names, np.bincount(owner[accepted], minlength=len(names)).tolist(), strict=True))
    columns = (_list(images, name) for name in ("image_uri", "status", "num_candidates", "num_detections"))
    for uri, status, num_candidates, num_detections in zip(*columns, strict=True):
        found = (stored.pop(uri, 0), passed.get(uri, 0))
        if status == "labelled" and found != (num_candidates, num_detections):
            findings.complain(
                "counts are the detections'",
                f"{where}: {uri} has {found[0]} stored and {found[1]} accepted, its row states {num_candidates} and "
                f"{num_detections}",
            )
        elif status != "labelled" and found[0]:
            findings.complain("detections belong to labelled images", f"{where}: {uri} is {status}")
    for uri in stored:
        findings.complain("detections belong to labelled images", f"{where}: {uri} is no image of the shard")
    _check_order(detections, owner, names, where, findings)


def _check_order(
    detections: pa.Table, owner: IntArray, names: Sequence[str | None], where: str, findings: Findings
) -> None:
    """Rows of an image lie together, numbered from 0, scores not rising."""
    position = np.arange(len(owner))
    first = np.ones(len(owner), np.bool_)
    first[1:] = owner[1:] != owner[:-1]
    place = position - np.maximum.accumulate(np.where(first, position, 0))
    scores = np.asarray(detections.column("score"), np.float32)
    rising = np.zeros(len(owner), np.bool_)
    rising[1:] = (scores[1:] > scores[:-1]) & ~first[1:]
    wrong = (np.asarray(detections.column("detection_index"), np.int64) != place) | rising
    if first.sum() != len(names):
        findings.complain("detections are in order", f"{where}: rows of one image lie apart")
    if wrong.any():
        row = int(np.argmax(wrong))
        findings.complain("detections are in order", f"{where}: row {row}, of {names[owner[row]]}")


def _list(table: pa.Table, name: str) -> list[Any]:
    return table.column(name).to_pylist()


def _difference(found: pa.Schema, want: pa.Schema) -> str:
    for wanted in want:
        if wanted.name not in found.names:
            return f"no column {wanted.name}"
        if found.field(wanted.name).type != wanted.type:
            return f"{wanted.name} is {found.field(wanted.name).type}, not {wanted.type}"
    return f"columns {', '.join(found.names)} are not {', '.join(want.names)}"
