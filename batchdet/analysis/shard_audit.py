"""Opens the two files of a shard for an audit, as far as they can be opened. Knows no other shard and no run row."""

import io

import pyarrow as pa

from batchdet.analysis.detection_audit import Claims, check_detections
from batchdet.analysis.image_audit import check_coverage, check_images
from batchdet.analysis.receipt import Findings
from batchdet.errors import NotFoundError
from batchdet.records import Shard
from batchdet.storage.filesystem import Store
from batchdet.storage.parquet import opened, read_rows
from batchdet.storage.plan import RunPlan, manifest_name, read_shard
from batchdet.storage.schema import DETECTIONS, IMAGES, completed


def shard_name(table: str, run_id: str, shard_id: int) -> str:
    """A shard's file of `images` or `detections`, relative to the output."""
    return f"{table}/run_id={run_id}/shard-{shard_id:05d}.parquet"


def check_shard(output: Store, plan: RunPlan, shard_id: int, claims: Claims, findings: Findings) -> None:
    """Check a committed shard's files against the plan and each other, and add its counts.

    Raises:
        StorageError: a file cannot be read.
    """
    images = _read(output, plan, "images", shard_id, findings)
    detections = _read(output, plan, "detections", shard_id, findings)
    if images is None:
        return
    where = output.child_uri(shard_name("images", plan.run_id, shard_id))
    shard = _planned(output, plan, shard_id, findings)
    if shard is not None:
        check_coverage(shard, images, where, findings)
    check_images(images, shard_id, where, findings)
    if detections is not None:
        where = output.child_uri(shard_name("detections", plan.run_id, shard_id))
        check_detections(images, detections, shard_id, claims, where, findings)


def _planned(output: Store, plan: RunPlan, shard_id: int, findings: Findings) -> Shard | None:
    """The shard as planned, if its manifest can be read."""
    check, name = "the plan is whole", manifest_name(plan.run_id, shard_id // plan.shards_per_file)
    try:
        return read_shard(output, plan, shard_id)
    except NotFoundError:
        findings.complain(check, f"{output.child_uri(name)} is missing: nothing says what was to be labelled")
    except (pa.ArrowException, OSError, IndexError, KeyError) as error:
        findings.complain(check, f"{output.child_uri(name)}, shard {shard_id}: {' '.join(str(error).split())}")
    return None


def _read(output: Store, plan: RunPlan, table: str, shard_id: int, findings: Findings) -> pa.Table | None:
    """The file if it is there and its columns can be relied on."""
    name = shard_name(table, plan.run_id, shard_id)
    uri = output.child_uri(name)
    try:
        with opened(io.BytesIO(output.read_bytes(name))) as file:
            read = read_rows(file)
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
    read = completed(read, schema)
    if read.schema.equals(schema) and table == "detections" and any(column.null_count for column in read.columns):
        findings.complain("columns are the schema's", f"{uri}: a detection with a null")
        return None
    if not read.schema.equals(schema):
        findings.complain("columns are the schema's", f"{uri}: {_difference(read.schema, schema)}")
        return None
    return read


def _difference(found: pa.Schema, want: pa.Schema) -> str:
    for wanted in want:
        if wanted.name not in found.names:
            return f"no column {wanted.name}"
        if found.field(wanted.name).type != wanted.type:
            return f"{wanted.name} is {found.field(wanted.name).type}, not {wanted.type}"
    return f"columns {', '.join(found.names)} are not {', '.join(want.names)}"
