"""Made values for storage tests: a header, listings, shards and outcomes. Knows no pictures."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from batchdet.config import EXTENSIONS
from batchdet.records import FailedImage, ImageFacts, ImageOutcome, ImageRef, InputSpec, LabelledImage, ModelInfo, Shard
from batchdet.storage.listing import list_images
from batchdet.storage.plan import PlanHeader
from batchdet.storage.schema import LISTING

CATEGORIES = ("__background__", "cat", "dog")
NOON = datetime(2026, 5, 17, 12, 0, tzinfo=UTC)
MODEL = ModelInfo(
    reference="torchvision:none",
    architecture="none",
    categories=CATEGORIES,
    digest="sha256:model",
    input_spec=InputSpec((320, 320), 320, 320, 1, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
)


def header(run_id: str = "20260517T120000Z-00000001", **changes: object) -> PlanHeader:
    values: dict[str, object] = {
        "run_id": run_id,
        "source": "s3://photos/2026/",
        "previous_run_id": None,
        "started_at": NOON,
        "model": MODEL,
        "policy": "{}",
        "policy_digest": "sha256:policy",
        "config": '{"source":"s3://photos/2026/"}',
        "versions": "{}",
    }
    return PlanHeader(**values | changes)  # type: ignore[arg-type]


def listing(refs: Iterable[ImageRef], batch: int = 1000) -> Iterable[pa.RecordBatch]:
    rows = [(ref.uri, ref.etag, ref.size_bytes, ref.last_modified) for ref in refs]
    for begin in range(0, len(rows), batch):
        columns = zip(*rows[begin : begin + batch], strict=True)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, LISTING, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=LISTING)


def listed(source: str, extensions: Sequence[str] = EXTENSIONS, **options: object) -> dict[str, ImageRef]:
    """Everything `list_images` yields, by URI; a URI that comes twice fails."""
    rows = [row for batch in list_images(source, options, extensions) for row in batch.to_pylist()]
    refs = {row["image_uri"]: ImageRef(*row.values()) for row in rows}
    assert len(refs) == len(rows)
    return refs


def refs(count: int) -> tuple[ImageRef, ...]:
    return tuple(ImageRef(f"s3://photos/2026/{n:04d}.jpg", f"etag{n}", 100 + n, NOON) for n in range(count))


def labelled(ref: ImageRef, scores: Sequence[float], threshold: float = 0.5) -> LabelledImage:
    count = len(scores)
    corners = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    return LabelledImage(
        ref=ref,
        facts=ImageFacts(640, 480, 6, f"sha256:{ref.uri[-8:]}", "pillow-13.0.0/exact", 777),
        boxes=corners,
        scores=np.array(scores, np.float32),
        labels=np.arange(count, dtype=np.int64) % 2 + 1,
        accepted=np.array(scores, np.float32) >= threshold,
        hit_detection_cap=count > 2,
    )


def failed(ref: ImageRef, code: str = "truncated") -> FailedImage:
    return FailedImage(ref, "decode", code, "made to fail", ImageFacts(size_bytes=3, content_digest="sha256:bad"))


def outcomes(shard: Shard) -> list[ImageOutcome]:
    """One outcome per image, reproducible: every fifth failed, the others with 0 to 3 detections."""
    made: list[ImageOutcome] = []
    for number, ref in enumerate(shard.images):
        scores = (0.9, 0.6, 0.2)[: number % 4]
        made.append(failed(ref) if number % 5 == 4 else labelled(ref, scores))
    return made
