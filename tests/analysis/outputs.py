"""Makes outputs to ask questions of: whole runs through the ledger, or bare files from a described history."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from batchdet.config import PlanConfig, PolicyConfig
from batchdet.records import (
    FailedImage,
    ImageFacts,
    ImageOutcome,
    ImageRef,
    InputSpec,
    LabelledImage,
    ModelInfo,
    RunRow,
)
from batchdet.storage.filesystem import Store
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import PlanHeader, RunPlan, read_shard
from batchdet.storage.planning import make_plan
from batchdet.storage.schema import IMAGES, IMAGES_ENCODING, LISTING, encode_table

CATEGORIES = ("__background__", "cat", "dog", "it's")
DEFAULT_POLICY = PolicyConfig()
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MODEL = ModelInfo(
    reference="torchvision:ssdlite320_mobilenet_v3_large",
    architecture="ssdlite320_mobilenet_v3_large",
    categories=CATEGORIES,
    digest="sha256:" + "0" * 64,
    input_spec=InputSpec((320, 320), 320, 320, 1, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
)
NEXT_MODEL = replace(MODEL, digest="sha256:" + "1" * 64)


@dataclass(frozen=True)
class Image:
    """What a run is to say of an image: accepted and rejected scores, or a failure code."""

    accepted: int = 0
    rejected: int = 0
    failure: str | None = None

    def outcome(self, ref: ImageRef) -> ImageOutcome:
        if self.failure is not None:
            return FailedImage(ref, "decode", self.failure, "made to fail")
        count = self.accepted + self.rejected
        return LabelledImage(
            ref,
            ImageFacts(width=100, height=80, content_digest="sha256:1", decoder="none", size_bytes=ref.size_bytes),
            boxes=np.tile(np.array([1, 2, 30, 40], np.float32), (count, 1)),
            scores=np.concatenate(
                [np.linspace(0.9, 0.6, self.accepted), np.linspace(0.4, 0.1, self.rejected)], dtype=np.float32
            ),
            labels=np.arange(count, dtype=np.int64) % 3 + 1,
            accepted=np.arange(count) < self.accepted,
            hit_detection_cap=False,
        )


def run_id(number: int) -> str:
    """Ids in ascending order."""
    return f"{(NOON + timedelta(days=number)).strftime('%Y%m%dT%H%M%SZ')}-{number:08x}"


def open_run(
    output: Store,
    number: int,
    images: Mapping[str, str | None],
    images_per_shard: int = 2,
    policy: PolicyConfig = DEFAULT_POLICY,
    model: ModelInfo = MODEL,
) -> RunPlan:
    """Plan a run over a listing (uri to etag) minus what complete runs hold; another model labels everything again."""
    ledger = Ledger(output)
    rows = ledger.complete_runs()
    header = PlanHeader(
        run_id=run_id(number),
        source="memory://source",
        previous_run_id=rows[0].run_id if rows else None,
        started_at=NOON + timedelta(days=number),
        model=model,
        policy=policy.canonical,
        policy_digest=policy.digest,
        config='{"model":{"score_floor":0.05}}',
        versions="{}",
    )
    listing = pa.RecordBatch.from_pylist(
        [{"image_uri": uri, "etag": etag, "size_bytes": 10, "last_modified": NOON} for uri, etag in images.items()],
        schema=LISTING,
    )
    known = ledger.known_images([row.run_id for row in rows]) if model is MODEL else []
    return make_plan(output, header, [listing], known, PlanConfig(images_per_shard=images_per_shard))


def commit(output: Store, plan: RunPlan, images: Mapping[str, Image], shard_ids: Sequence[int] | None = None) -> None:
    """Commit shards of a plan; an image that is not described has no objects."""
    ledger = Ledger(output, clock=lambda: plan.header.started_at)
    for shard_id in range(plan.num_shards) if shard_ids is None else shard_ids:
        shard = read_shard(output, plan, shard_id)
        ledger.commit(plan, shard, [images.get(ref.uri, Image()).outcome(ref) for ref in shard.images])


def delete(output: Store, plan: RunPlan, uris: Collection[str]) -> None:
    """Rows that say of images that they are gone, as a shard after the planned ones."""
    rows = [
        {"image_uri": uri, "status": "deleted", "shard_id": plan.num_shards, "labelled_at": NOON}
        for uri in sorted(uris, key=str.encode)
    ]
    table = pa.Table.from_pylist(rows, schema=IMAGES)
    name = f"images/run_id={plan.run_id}/shard-{plan.num_shards:05d}.parquet"
    output.write_bytes(name, encode_table(table, IMAGES_ENCODING, plan.header.stamp))


def close(output: Store, plan: RunPlan, status: str = "complete") -> RunRow:
    """Close a run."""
    ledger = Ledger(output, clock=lambda: NOON + timedelta(hours=1))
    row = replace(ledger.closing_row(plan, "complete", 12.5), status=status)
    ledger.close(row)
    return row


def whole_run(output: Store, number: int, images: Mapping[str, Image], etag: str = "e") -> RunPlan:
    """A complete run over these images and no others."""
    plan = open_run(output, number, dict.fromkeys(images, etag))
    commit(output, plan, images)
    close(output, plan)
    return plan
