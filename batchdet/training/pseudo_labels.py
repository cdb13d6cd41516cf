"""Committed detections become pseudo-labels as columns: which images, which boxes, in which band. Knows no pixels.

Shape shorthand: N images, D boxes of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import torch

from batchdet.analysis.query import ask_columns
from batchdet.config import PolicyConfig
from batchdet.errors import ConfigError, SourceError
from batchdet.records import RunRow
from batchdet.storage.filesystem import Store
from batchdet.storage.ledger import Ledger
from batchdet.training.config import PseudoLabelConfig
from batchdet.training.targets import Banded, Target, pseudo_target

ACCEPT, IGNORE = "accept", "ignore"
"""Words of the column `band`; rejected boxes have no row."""

_COLUMNS: dict[str, pa.DataType] = {
    "image_uri": pa.string(),
    "etag": pa.string(),
    "content_digest": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "run_id": pa.string(),
    "boxes": pa.list_(pa.list_(pa.float32(), 4)),
    "labels": pa.list_(pa.int32()),
    "scores": pa.list_(pa.float32()),
    "band": pa.list_(pa.string()),
}
SCHEMA = pa.schema(_COLUMNS)
"""One row per image, sorted by image_uri: xyxy pixels of the EXIF-applied image, labels of the student's categories."""

_LATEST = """
SELECT * FROM (SELECT image_uri, etag, content_digest, width, height, status, run_id,
  ROW_NUMBER() OVER (PARTITION BY image_uri ORDER BY run_id DESC) AS recency
  FROM all_images WHERE run_id IN ({runs})) WHERE recency = 1
"""
_BANDED = """
SELECT d.image_uri, d.run_id, d.detection_index, b.label, d.score, d.xmin, d.ymin, d.xmax, d.ymax,
  CASE WHEN d.accepted AND d.score >= b.accept THEN 'accept' ELSE 'ignore' END AS band
FROM all_detections d
INNER JOIN ({latest}) l ON d.image_uri = l.image_uri AND d.run_id = l.run_id
INNER JOIN (VALUES {bands}) b(category, label, accept, "ignore")
  ON d.category = b.category AND d.score >= b."ignore"
WHERE d.xmax > d.xmin AND d.ymax > d.ymin
"""
_MERGE = """
CREATE TEMP TABLE newest AS SELECT * FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY image_uri ORDER BY run_id DESC, output) AS age FROM images_found)
WHERE age = 1 AND status = 'labelled';
CREATE TEMP TABLE boxes AS SELECT b.* FROM boxes_found b
INNER JOIN newest n ON b.image_uri = n.image_uri AND b.output = n.output;
CREATE TEMP TABLE kept AS SELECT *, ROW_NUMBER() OVER (ORDER BY image_uri) - 1 AS place FROM newest
WHERE image_uri IN (SELECT image_uri FROM boxes WHERE band = 'accept') OR md5('{seed}:' || image_uri) < '{limit}';
"""
_IMAGES = "SELECT image_uri, etag, content_digest, width, height, run_id FROM kept ORDER BY place"
_BOXES = """
SELECT k.place, b.label, b.score, b.xmin, b.ymin, b.xmax, b.ymax, b.band
FROM boxes b INNER JOIN kept k ON b.image_uri = k.image_uri ORDER BY k.place, b.detection_index
"""
_COUNTED = "SELECT label, count(*) FROM boxes WHERE band = 'accept' GROUP BY label"


@dataclass(frozen=True, slots=True)
class BoxCounts:
    """Boxes of a labelled set of images.

    Attributes:
        num_images: those without a box included.
        boxes: by category name.
    """

    num_images: int
    boxes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """What there is to learn from committed labels.

    Attributes:
        table: rows of `SCHEMA`: the images to learn from.
        counts: of all labelled images, before any without a pseudo-label was left out.
        run_ids: of the rows, ascending.
    """

    table: pa.Table
    counts: BoxCounts
    run_ids: tuple[str, ...]


def read_pseudo_labels(
    outputs: Sequence[Store], run_ids: Sequence[str], categories: Sequence[str], rules: PseudoLabelConfig, seed: int
) -> PseudoLabels:
    """The latest labels of every image in complete runs, cut into bands.

    An image whose latest row is failed or deleted has no labels. Boxes of categories the student does not have are left
    out: to it they are background.

    Args:
        outputs: folders that `label` wrote.
        run_ids: only these runs; empty takes every complete one.
        categories: the student's, in label order.
        rules: bands and what becomes of images without a pseudo-label.
        seed: of the choice among those.

    Raises:
        ConfigError: a run is not complete or not there, a band is of no category, or the run's policy accepts less than
            a band does.
        OutputError: an output holds no run.
        SourceError: no image has a label to learn from.
        StorageError: an output cannot be read.
    """
    unknown = sorted(set(rules.category_bands) - set(categories[1:]))
    if unknown:
        raise ConfigError(f"pseudo_labels.category_bands.{unknown[0]}: the student has no such category")
    runs = _choose_runs(outputs, run_ids)
    for row in (row for rows in runs for row in rows):
        _refuse_void_bands(row, categories, rules)
    with duckdb.connect(":memory:") as connection:
        _gather(connection, outputs, runs, _band_rows(categories, rules))
        connection.execute(_MERGE.format(seed=seed, limit=_hash_limit(rules)))
        counts = {categories[label]: count for label, count in connection.sql(_COUNTED).fetchall()}
        ((num_images,),) = connection.sql("SELECT count(*) FROM newest").fetchall()
        table = _with_lists(connection.sql(_IMAGES).to_arrow_table(), connection.sql(_BOXES).to_arrow_table())
    if not counts:
        raise SourceError(f"none of {num_images} labelled images has a box in the accept band; lower the band")
    used = {str(run_id) for run_id in table.column("run_id").to_pylist()}
    return PseudoLabels(table, BoxCounts(num_images, counts), tuple(sorted(used)))


def _gather(
    connection: duckdb.DuckDBPyConnection, outputs: Sequence[Store], runs: Sequence[Sequence[RunRow]], bands: str
) -> None:
    """Bring the latest images of every output and their boxes to this connection, numbered by output."""
    images, boxes = [], []
    for number, (output, rows) in enumerate(zip(outputs, runs, strict=True)):
        if rows:
            latest = _LATEST.format(runs=", ".join(f"'{row.run_id}'" for row in rows))
            images.append(_numbered(ask_columns(output, latest), number))
            boxes.append(_numbered(ask_columns(output, _BANDED.format(latest=latest, bands=bands)), number))
    connection.register("images_found", pa.concat_tables(images))
    connection.register("boxes_found", pa.concat_tables(boxes))


def _numbered(table: pa.Table, number: int) -> pa.Table:
    return table.append_column("output", pa.array(np.full(table.num_rows, number, np.int32)))


def _with_lists(images: pa.Table, boxes: pa.Table) -> pa.Table:
    """Rows of `SCHEMA`: each image with the boxes whose `place` is its row, both in order."""
    # DuckDB's own lists of arrays come out damaged of a join with images that have none.
    per_image = np.bincount(boxes.column("place").to_numpy(), minlength=images.num_rows)
    offsets: Any = pa.array(np.concatenate([[0], np.cumsum(per_image)]).astype(np.int32))
    corners = np.stack([boxes.column(name).to_numpy() for name in ("xmin", "ymin", "xmax", "ymax")], axis=1)
    columns: dict[str, Any] = {
        "boxes": pa.FixedSizeListArray.from_arrays(pa.array(corners.astype(np.float32).ravel()), 4),
        "labels": pa.array(boxes.column("label").to_numpy().astype(np.int32)),
        "scores": pa.array(boxes.column("score").to_numpy().astype(np.float32)),
        "band": boxes.column("band").combine_chunks(),
    }
    for name, values in columns.items():
        images = images.append_column(name, pa.ListArray.from_arrays(offsets, values))
    return images.cast(SCHEMA)


def row_target(row: Mapping[str, Any], rules: PseudoLabelConfig) -> Target:
    """The target of an image, from its row of `SCHEMA`."""
    boxes = torch.from_numpy(np.array(row["boxes"], np.float32).reshape(-1, 4))
    band = np.array(row["band"], dtype=object)
    banded = Banded(torch.from_numpy(band == ACCEPT), torch.from_numpy(band == IGNORE))
    labels, scores = np.array(row["labels"], np.int64), np.array(row["scores"], np.float32)
    return pseudo_target(boxes, torch.from_numpy(labels), torch.from_numpy(scores), banded, rules)


def _choose_runs(outputs: Sequence[Store], run_ids: Sequence[str]) -> list[list[RunRow]]:
    """The runs to read of every output."""
    complete = [Ledger(output).complete_runs() for output in outputs]
    known = {row.run_id for rows in complete for row in rows}
    for run_id in run_ids:
        if run_id not in known:
            where = ", ".join(output.uri for output in outputs)
            raise ConfigError(f"source.runs: {run_id} is not a complete run of {where}")
    if not known:
        raise SourceError(f"source.outputs: no complete run in {', '.join(output.uri for output in outputs)}")
    return [[row for row in rows if not run_ids or row.run_id in run_ids] for rows in complete]


def _refuse_void_bands(row: RunRow, categories: Sequence[str], rules: PseudoLabelConfig) -> None:
    """A band that reaches under what the run stored or accepted would silently hold less than it says."""
    policy = PolicyConfig.model_validate_json(row.policy)
    for name in categories[1:]:
        if name not in row.categories:
            continue
        threshold = policy.score_thresholds.get(name, policy.score_threshold)
        if rules.bands_of(name).accept < threshold:
            raise ConfigError(
                f"pseudo_labels: {name} is accepted from {rules.bands_of(name).accept}, but the policy of run "
                f"{row.run_id} accepts it from {threshold}; raise the band or refilter the run"
            )


def _band_rows(categories: Sequence[str], rules: PseudoLabelConfig) -> str:
    """Category, label, accept and ignore as SQL rows."""
    rows = []
    for label, name in enumerate(categories[1:], start=1):
        band = rules.bands_of(name)
        quoted = name.replace("'", "''")
        # Scores are float32: a threshold must be rounded as they are.
        rows.append(f"('{quoted}', {label}, {band.accept!r}::FLOAT, {band.ignore!r}::FLOAT)")
    return ", ".join(rows)


def _hash_limit(rules: PseudoLabelConfig) -> str:
    """Images without a pseudo-label are kept whose hash is under this: hexadecimal digits sort as numbers do."""
    share = {"keep": 1.0, "drop": 0.0, "sample": rules.empty_share}[rules.empty_images]
    return "g" if share == 1.0 else f"{int(share * (1 << 32)):08x}"
