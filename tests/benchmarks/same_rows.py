"""Whether two labellings of the same pictures say the same. Knows the two layouts it reads, not how they were made."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchdet.records import FloatArray, IntArray

SCORE_TOLERANCE = 1e-5
BOX_TOLERANCE = 1e-3
SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, slots=True)
class Rows:
    """Detections of one picture, highest score first: boxes [N, 4] in pixels, scores [N], labels [N]."""

    boxes: FloatArray
    scores: FloatArray
    labels: IntArray

    def above(self, floor: float) -> "Rows":
        """Those with a score clearly over the floor."""
        kept = self.scores > floor + SCORE_TOLERANCE
        return Rows(self.boxes[kept], self.scores[kept], self.labels[kept])


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a comparison found.

    Attributes:
        images, detections: compared.
        swapped: images where detections of equal score (within the tolerance) come in another order.
        different: images where a detection has no equal.
        max_score, max_box: largest differences between equals, in scores and pixels.
    """

    images: int
    detections: int
    swapped: int
    different: tuple[str, ...]
    max_score: float
    max_box: float

    def describe(self) -> str:
        """One line."""
        verdict = f"{len(self.different)} images DIFFER, e.g. {self.different[0]}" if self.different else "the same"
        return (
            f"{self.detections} detections on {self.images} images: {verdict}; ties in another order on "
            f"{self.swapped}; scores within {self.max_score:.1e}, boxes within {self.max_box:.1e} px"
        )


def read_rows(files: Iterator[Path], uri_column: str) -> dict[str, Rows]:
    """Detections by file name of the picture, from flat Parquet rows."""
    columns = [uri_column, "score", "label", *SIDES]
    table = pa.concat_tables(
        pq.read_table(path, columns=columns, partitioning=None).cast(_schema(columns)) for path in sorted(files)
    )
    table = table.sort_by([(uri_column, "ascending"), ("score", "descending")])
    uris = table[uri_column]
    _, counts = np.unique(uris.to_numpy(zero_copy_only=False), return_counts=True)
    edges = np.concatenate([[0], np.cumsum(counts)])
    boxes = np.stack([table[side].to_numpy() for side in SIDES], axis=1)
    scores, labels = table["score"].to_numpy(), table["label"].to_numpy()
    names = [uri.rpartition("/")[2] for uri in pc.unique(uris).to_pylist()]
    return {
        name: Rows(boxes[start:end], scores[start:end], labels[start:end])
        for name, start, end in zip(names, edges[:-1], edges[1:], strict=True)
    }


def compare(ours: dict[str, Rows], theirs: dict[str, Rows], names: set[str], floor: float) -> Agreement:
    """Compare the pictures of the given names above the floor; one without rows counts as without detections."""
    none = Rows(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    detections, swapped, different, scores, boxes = 0, 0, [], [0.0], [0.0]
    for name in sorted(names):
        mine, other = ours.get(name, none).above(floor), theirs.get(name, none).above(floor)
        detections += len(mine.scores)
        order = _match(mine, other)
        if order is None:
            different.append(name)
            continue
        swapped += bool((order != np.arange(len(order))).any())
        scores.append(float(np.abs(mine.scores - other.scores[order]).max(initial=0)))
        boxes.append(float(np.abs(mine.boxes - other.boxes[order]).max(initial=0)))
    return Agreement(len(names), detections, swapped, tuple(different), max(scores), max(boxes))


def _match(mine: Rows, other: Rows) -> IntArray | None:
    """For each of mine the place of its equal in `other`; None when one has none."""
    if len(mine.scores) != len(other.scores):
        return None
    free = np.ones(len(other.scores), np.bool_)
    order = np.empty(len(mine.scores), np.int64)
    for place, (box, score, label) in enumerate(zip(mine.boxes, mine.scores, mine.labels, strict=True)):
        alike = free & (np.abs(other.scores - score) <= SCORE_TOLERANCE) & (other.labels == label)
        alike &= (np.abs(other.boxes - box) <= BOX_TOLERANCE).all(axis=1)
        if not alike.any():
            return None
        order[place] = int(np.flatnonzero(alike)[0])
        free[order[place]] = False
    return order


def _schema(columns: list[str]) -> pa.Schema:
    types = {"score": pa.float32(), "label": pa.int64(), **dict.fromkeys(SIDES, pa.float32())}
    return pa.schema([(name, types.get(name, pa.string())) for name in columns])
