"""The committed labels of an image, for another image of the same bytes. Knows no plan and no detector."""

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchdet.errors import NotFoundError
from batchdet.records import CopiedImage, ImageFacts, LabelledImage
from batchdet.storage.filesystem import Store
from batchdet.storage.parquet import opened, read_rows

_IMAGE_COLUMNS = (
    "image_uri",
    "status",
    "content_digest",
    "width",
    "height",
    "exif_orientation",
    "decoder",
    "hit_detection_cap",
)
_DETECTION_COLUMNS = ("image_uri", "detection_index", "label", "score", "xmin", "ymin", "xmax", "ymax", "accepted")


def read_copies(output: Store, images: Iterable[CopiedImage], score_floor: float) -> dict[str, LabelledImage]:
    """Labels of the images' twins, by the image's own URI; an image whose twin is no longer there is left out.

    Args:
        output: the folder.
        images: labelled before, under another name.
        score_floor: candidates below it are left out: the twin's run may have stored more.

    Raises:
        StorageError: a file that is there cannot be read.
    """
    found: dict[str, LabelledImage] = {}
    ordered = sorted(images, key=lambda image: (image.twin.run_id, image.twin.shard_id, image.twin.image_uri))
    for (run_id, shard_id), same in groupby(ordered, key=lambda image: (image.twin.run_id, image.twin.shard_id)):
        here = list(same)
        uris = pa.array(sorted({image.twin.image_uri for image in here}), pa.string())
        name = f"run_id={run_id}/shard-{shard_id:05d}.parquet"
        try:
            rows = _rows(output, f"images/{name}", _IMAGE_COLUMNS, uris)
            detections = _rows(output, f"detections/{name}", _DETECTION_COLUMNS, uris)
            detections = detections.filter(pc.greater_equal(detections["score"], pa.scalar(score_floor, pa.float32())))
        except NotFoundError:
            continue
        by_uri = {row["image_uri"]: row for row in rows.to_pylist()}
        for image in here:
            row = by_uri.get(image.twin.image_uri)
            if row and row["status"] == "labelled" and row["content_digest"] == image.twin.content_digest:
                mine = detections.filter(pc.equal(detections["image_uri"], pa.scalar(image.twin.image_uri)))
                found[image.ref.uri] = _labelled(image, row, mine.sort_by("detection_index"))
    return found


def _rows(output: Store, name: str, columns: Sequence[str], uris: "pa.StringArray") -> pa.Table:
    with opened(output.open_input(name)) as file:
        table = read_rows(file, columns)
    return table.filter(pc.is_in(table["image_uri"], uris))


def _labelled(image: CopiedImage, row: dict[str, object], detections: pa.Table) -> LabelledImage:
    facts = {name: row[name] for name in ("width", "height", "exif_orientation", "decoder")}
    sides = [detections[side].to_numpy() for side in ("xmin", "ymin", "xmax", "ymax")]
    return LabelledImage(
        ref=image.ref,
        facts=ImageFacts(content_digest=image.facts.content_digest, size_bytes=image.facts.size_bytes, **facts),  # type: ignore[arg-type]
        boxes=np.stack(sides, axis=1).astype(np.float32, copy=False),
        scores=detections["score"].to_numpy(),
        labels=detections["label"].to_numpy().astype(np.int64),
        accepted=np.asarray(detections["accepted"], np.bool_),
        hit_detection_cap=bool(row["hit_detection_cap"]),
        copied_from=image.twin.image_uri,
    )
