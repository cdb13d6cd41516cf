"""Makes the plan of a run: a listing classified, sorted and cut into shards. Knows no engine, no cluster.

Apart from `plan`, which reads it back: labellers need that, and not the database that sorts.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from batchdet.config import PlanConfig
from batchdet.records import PlanCounts
from batchdet.storage.classify import Classified, classified
from batchdet.storage.filesystem import Store
from batchdet.storage.plan import PlanHeader, RunPlan, manifest_name, plan_name
from batchdet.storage.schema import LISTING, SCHEMA_VERSION, Encoding, writer_options

_MANIFEST_ROWS = 262_144


def count_plan(
    listing: Iterable[pa.RecordBatch], known: Iterable[pa.RecordBatch], plan_config: PlanConfig
) -> PlanCounts:
    """What a plan would hold; writes nothing to the output."""
    with classified(listing, known, plan_config.retry_failed) as result:
        return result.counts


def make_plan(
    output: Store,
    header: PlanHeader,
    listing: Iterable[pa.RecordBatch],
    known: Iterable[pa.RecordBatch],
    plan_config: PlanConfig,
) -> RunPlan:
    """Write the plan of a run, `plan.json` last; from then on the run is open.

    Args:
        output: the output folder.
        header: what the run is.
        plan_config: how the listing is cut.
        listing: batches of `schema.LISTING`, in any order.
        known: batches of `schema.KNOWN`: the rows of complete runs.

    Raises:
        SourceError: raised by the listing.
        StorageError: the output refused a file.
    """
    with classified(listing, known, plan_config.retry_failed) as result:
        counts = result.counts
        plan = RunPlan(
            header=header,
            counts=counts,
            num_shards=-(-counts.num_planned // plan_config.images_per_shard),
            images_per_shard=plan_config.images_per_shard,
            shards_per_file=max(1, _MANIFEST_ROWS // plan_config.images_per_shard),
        )
        _write_manifests(output, plan, result)
    output.write_bytes(plan_name(plan.run_id), _plan_json(plan).encode())
    return plan


def _write_manifests(output: Store, plan: RunPlan, result: Classified) -> None:
    """Manifest files one after the other: one file of row groups is all that is held in memory."""
    options = writer_options(LISTING, Encoding(sorted_by=("image_uri",)))
    schema = LISTING.with_metadata(plan.header.stamp.metadata())
    shards = result.batches(plan.images_per_shard)
    for number in range(-(-plan.num_shards // plan.shards_per_file)):
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, schema, **options) as writer:
            for _ in range(min(plan.shards_per_file, plan.num_shards - number * plan.shards_per_file)):
                batch = next(shards)
                writer.write_batch(batch.cast(schema), row_group_size=max(batch.num_rows, 1))
        output.write_bytes(manifest_name(plan.run_id, number), sink.getvalue().to_pybytes())


def _plan_json(plan: RunPlan) -> str:
    header = asdict(plan.header) | {"started_at": plan.header.started_at.isoformat()}
    tree = {
        "schema_version": SCHEMA_VERSION,
        "header": header,
        "counts": asdict(plan.counts),
        "num_shards": plan.num_shards,
        "images_per_shard": plan.images_per_shard,
        "shards_per_file": plan.shards_per_file,
    }
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"
