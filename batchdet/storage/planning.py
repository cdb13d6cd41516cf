"""Makes the plan of a run: a listing classified, sorted and cut into shards. Knows no engine, no cluster.

Apart from `plan`, which reads it back: labellers need that, and not the database that sorts.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from batchdet.config import PlanConfig
from batchdet.errors import SourceError
from batchdet.records import PlanCounts
from batchdet.storage.classify import PARTS, Comparison, classified
from batchdet.storage.filesystem import Store
from batchdet.storage.plan import PlanHeader, RunPlan, manifest_name, plan_name
from batchdet.storage.schema import PLANNED, SCHEMA_VERSION, Encoding, writer_options

_MANIFEST_ROWS = 262_144
_ALL_THE_SAME = Comparison()


def count_plan(
    listing: Iterable[pa.RecordBatch],
    known: Iterable[pa.RecordBatch],
    plan_config: PlanConfig,
    comparison: Comparison = _ALL_THE_SAME,
) -> tuple[PlanCounts, int]:
    """What a plan would hold, and how many images earlier runs know; writes nothing to the output."""
    with classified(listing, known, plan_config, comparison) as result:
        return result.counts, result.num_known


def make_plan(
    output: Store,
    header: PlanHeader,
    listing: Iterable[pa.RecordBatch],
    known: Iterable[pa.RecordBatch],
    plan_config: PlanConfig,
    comparison: Comparison = _ALL_THE_SAME,
) -> RunPlan:
    """Write the plan of a run, `plan.json` last; from then on the run is open.

    Args:
        output: the output folder.
        header: what the run is.
        plan_config: how the listing is classified and cut.
        listing: batches of `schema.LISTING`, in any order.
        known: batches of `schema.KNOWN`: the rows of complete runs.
        comparison: how known images stand to this run.

    Raises:
        SourceError: raised by the listing; or so many known images are gone that the listing must be broken.
        StorageError: the output refused a file.
    """
    with classified(listing, known, plan_config, comparison) as result:
        refuse_vanishing(result.counts, result.num_known, plan_config, header.source)
        counts = result.counts
        images_per_shard = plan_config.shard_images(counts.num_planned + counts.num_deleted)
        plan = new_plan(header, counts, images_per_shard)
        result.find_twins()
        shards = (batch for part in PARTS for batch in result.batches(part, plan.images_per_shard))
        write_plan(output, plan, shards)
    return plan


def refuse_vanishing(counts: PlanCounts, num_known: int, plan_config: PlanConfig, source: str) -> None:
    """Take a listing that lacks too many of the known images for a broken one.

    Raises:
        SourceError
    """
    if counts.num_deleted > plan_config.max_deleted_fraction * num_known:
        raise SourceError(
            f"source {source}: {counts.num_deleted:,} of {num_known:,} known images are no longer listed, more than "
            f"plan.max_deleted_fraction {plan_config.max_deleted_fraction:g} allows; if the listing is whole, raise "
            "it; if it is partial, --no-delete keeps them"
        )


def new_plan(header: PlanHeader, counts: PlanCounts, images_per_shard: int) -> RunPlan:
    """A plan whose manifest files hold as many shards as fit."""
    return RunPlan(
        header=header,
        counts=counts,
        images_per_shard=images_per_shard,
        shards_per_file=max(1, _MANIFEST_ROWS // images_per_shard),
    )


def write_plan(output: Store, plan: RunPlan, shards: Iterator[pa.RecordBatch]) -> None:
    """Write the manifests, then `plan.json`; from then on the run is open.

    Args:
        output: the output folder.
        plan: what is written.
        shards: the images of each shard, with columns of `schema.PLANNED`; those that are not there are null.

    Raises:
        StorageError: the output refused a file.
    """
    _write_manifests(output, plan, shards)
    output.write_bytes(plan_name(plan.run_id), _plan_json(plan).encode())


def _write_manifests(output: Store, plan: RunPlan, shards: Iterator[pa.RecordBatch]) -> None:
    """Manifest files one after the other: one file of row groups is all that is held in memory."""
    options = writer_options(PLANNED, Encoding(sorted_by=("image_uri",), level=1))
    schema = PLANNED.with_metadata(plan.header.stamp.metadata())
    for number in range(-(-plan.num_shards // plan.shards_per_file)):
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, schema, **options) as writer:
            for _ in range(min(plan.shards_per_file, plan.num_shards - number * plan.shards_per_file)):
                batch = next(shards)
                writer.write_batch(_whole(batch).cast(schema), row_group_size=max(batch.num_rows, 1))
        output.write_bytes(manifest_name(plan.run_id, number), sink.getvalue().to_pybytes())


def _whole(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with every column of `schema.PLANNED`."""
    columns = [
        batch.column(field.name) if field.name in batch.schema.names else pa.nulls(batch.num_rows, field.type)
        for field in PLANNED
    ]
    return pa.RecordBatch.from_arrays(columns, names=PLANNED.names)


def _plan_json(plan: RunPlan) -> str:
    header = asdict(plan.header) | {"started_at": plan.header.started_at.isoformat()}
    tree = {
        "schema_version": SCHEMA_VERSION,
        "header": header,
        "counts": asdict(plan.counts),
        "images_per_shard": plan.images_per_shard,
        "shards_per_file": plan.shards_per_file,
    }
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"
