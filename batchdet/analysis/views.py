"""The SQL views of an output, one text per dialect. Knows what a view means; how an engine reads files is `relations`'.

Views: current_images · current_candidates · current_detections · failures, over runs · all_images · all_detections
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from batchdet.analysis.relations import BASE_TABLES, DATASET, Dialect, base_statements, relation_name
from batchdet.storage.schema import DETECTIONS, IMAGES


@dataclass(frozen=True, slots=True)
class _View:
    """A view; its query names relations and column lists in braces."""

    name: str
    meaning: str
    query: str


_VIEWS = (
    _View(
        "current_images",
        "the latest row of each image in a complete run; deleted images are gone. The latest row wins even where it "
        "failed: labels of an older content are not current",
        "SELECT {image_columns} FROM (SELECT {image_columns}, "
        "ROW_NUMBER() OVER (PARTITION BY image_uri ORDER BY run_id DESC) AS recency FROM {all_images} "
        "WHERE run_id IN (SELECT run_id FROM {runs} WHERE status = 'complete')) ranked "
        "WHERE recency = 1 AND status <> 'deleted'",
    ),
    _View(
        "current_candidates",
        "every stored detection of the current images, accepted or not; a failed image has none",
        # not a join: Spark then reads runs again whose images were all labelled later
        "SELECT {detection_columns} FROM {all_detections} d WHERE EXISTS (SELECT 1 FROM {current_images} i "
        "WHERE i.run_id = d.run_id AND i.image_uri = d.image_uri)",
    ),
    _View(
        "current_detections",
        "the accepted detections of the current images",
        "SELECT {detection_columns} FROM {current_candidates} WHERE accepted",
    ),
    _View(
        "failures",
        "current images that could not be labelled, with the reason",
        "SELECT image_uri, failure_stage, failure_code, failure_reason, etag, size_bytes, labelled_at, shard_id, "
        "run_id FROM {current_images} WHERE status = 'failed'",
    ),
)
_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "image_columns": ", ".join([*IMAGES.names, "run_id"]),
        "detection_columns": ", ".join([*DETECTIONS.names, "run_id"]),
    }
)
_KEEPS_COLUMNS = (
    "a table that is there already keeps its columns: after an update of batchdet that adds some, DROP TABLE it first "
    "(its files stay)"
)
_NOTES: Mapping[Dialect, tuple[str, ...]] = MappingProxyType(
    {
        Dialect.DUCKDB: (
            "s3:// first needs: INSTALL httpfs; LOAD httpfs; CREATE SECRET (TYPE s3, PROVIDER credential_chain);",
            "or let batchdet read: batchdet query OUTPUT 'SELECT ...'",
        ),
        Dialect.SPARK: ("s3:// is spelled s3a:// here; define the views again to see a later run",),
        Dialect.ATHENA: (
            "run the statements one at a time, in the database the tables shall be in; Athena reads s3:// only",
            _KEEPS_COLUMNS,
        ),
        Dialect.TRINO: ("for a Hive catalog: USE catalog.schema; first", _KEEPS_COLUMNS),
        Dialect.BIGQUERY: (
            f"in the dataset {DATASET}, which must be where the bucket is: CREATE SCHEMA {DATASET} "
            "OPTIONS (location = '...'); BigQuery reads gs:// here",
            "for BigLake, put WITH CONNECTION `project.region.connection` before every OPTIONS",
        ),
        Dialect.DATAFUSION: ("a store other than file:// must be registered with the session first",),
    }
)


def view_statements(dialect: Dialect, output_uri: str, filled: Collection[str]) -> list[str]:
    """The statements that define the views, in order, without closing semicolons.

    Args:
        dialect: who reads them.
        output_uri: the output folder with scheme.
        filled: folders (`runs`, `images`, `detections`) that hold a file.
    """
    uri = output_uri.rstrip("/")
    statements = [
        text for table in BASE_TABLES for text in base_statements(dialect, table, uri, table.folder in filled)
    ]
    create = "CREATE OR REPLACE TEMPORARY VIEW" if dialect is Dialect.SPARK else "CREATE OR REPLACE VIEW"
    relations = [table.name for table in BASE_TABLES] + [view.name for view in _VIEWS]
    names = {name: relation_name(dialect, name) for name in relations}
    return statements + [
        f"-- {view.meaning}\n{create} {names[view.name]} AS {view.query.format(**_COLUMNS, **names)}" for view in _VIEWS
    ]


def view_script(dialect: Dialect, output_uri: str, filled: Collection[str]) -> str:
    """The statements as one text to feed to the engine, with what it needs to know."""
    empty = [table.folder for table in BASE_TABLES if table.folder not in filled]
    notes = [f"batchdet: views for {dialect}", *_NOTES[dialect]]
    if empty and dialect in (Dialect.DUCKDB, Dialect.SPARK):
        notes.append(f"no file yet under {', '.join(empty)}: made empty here; print this again after the next run")
    header = "\n".join(f"-- {note}" for note in notes)
    return "\n\n".join([header, *(f"{text};" for text in view_statements(dialect, output_uri, filled))]) + "\n"
