"""The SQL views of an output, one text per dialect. Knows columns and quoting; opens nothing.

Base relations, one row per row of a committed file:  runs · all_images · all_detections (both with run_id)
Views: current_images · current_candidates · current_detections · failures
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import pyarrow as pa

from batchdet.storage.schema import DETECTIONS, IMAGES, RUNS


class Dialect(StrEnum):
    """An engine that reads the output."""

    DUCKDB = "duckdb"
    SPARK = "spark"
    ATHENA = "athena"
    TRINO = "trino"


@dataclass(frozen=True, slots=True)
class BaseTable:
    """A folder of Parquet files and the relation it becomes.

    Attributes:
        folder: under the output.
        files: pattern of its files below the folder.
        is_partitioned: files lie in `run_id=<run_id>` folders; run_id is a column of the relation only.
    """

    name: str
    folder: str
    files: str
    schema: pa.Schema
    is_partitioned: bool

    @property
    def columns(self) -> pa.Schema:
        """Columns of the relation."""
        return self.schema.append(pa.field("run_id", pa.string())) if self.is_partitioned else self.schema


BASE_TABLES = (
    BaseTable("runs", "runs", "*.parquet", RUNS, is_partitioned=False),
    BaseTable("all_images", "images", "run_id=*/shard-*.parquet", IMAGES, is_partitioned=True),
    BaseTable("all_detections", "detections", "run_id=*/shard-*.parquet", DETECTIONS, is_partitioned=True),
)
"""Everything the views are made of."""


@dataclass(frozen=True, slots=True)
class _View:
    name: str
    meaning: str
    query: str


_IMAGE_COLUMNS = ", ".join([*IMAGES.names, "run_id"])
_DETECTION_COLUMNS = ", ".join(f"d.{name}" for name in [*DETECTIONS.names, "run_id"])
_VIEWS = (
    _View(
        "current_images",
        "the latest row of each image in a complete run; deleted images are gone. The latest row wins even where it "
        "failed: labels of an older content are not current",
        f"SELECT {_IMAGE_COLUMNS} FROM (SELECT {_IMAGE_COLUMNS}, "  # noqa: S608
        "ROW_NUMBER() OVER (PARTITION BY image_uri ORDER BY run_id DESC) AS recency FROM all_images "
        "WHERE run_id IN (SELECT run_id FROM runs WHERE status = 'complete')) ranked "
        "WHERE recency = 1 AND status <> 'deleted'",
    ),
    _View(
        "current_candidates",
        "every stored detection of the current images, accepted or not; a failed image has none",
        f"SELECT {_DETECTION_COLUMNS} FROM all_detections d INNER JOIN current_images i "  # noqa: S608
        "ON d.run_id = i.run_id AND d.image_uri = i.image_uri",
    ),
    _View(
        "current_detections",
        "the accepted detections of the current images",
        f"SELECT {', '.join([*DETECTIONS.names, 'run_id'])} FROM current_candidates WHERE accepted",  # noqa: S608
    ),
    _View(
        "failures",
        "current images that could not be labelled, with the reason",
        "SELECT image_uri, failure_stage, failure_code, failure_reason, etag, size_bytes, labelled_at, shard_id, "
        "run_id FROM current_images WHERE status = 'failed'",
    ),
)

_TYPES: Mapping[Dialect, Mapping[pa.DataType, str]] = MappingProxyType(
    {
        Dialect.DUCKDB: {
            pa.string(): "VARCHAR",
            pa.int8(): "TINYINT",
            pa.int32(): "INTEGER",
            pa.int64(): "BIGINT",
            pa.float32(): "REAL",
            pa.float64(): "DOUBLE",
            pa.bool_(): "BOOLEAN",
            pa.timestamp("us", tz="UTC"): "TIMESTAMP WITH TIME ZONE",
            pa.list_(pa.string()): "VARCHAR[]",
        },
        Dialect.TRINO: {
            pa.string(): "VARCHAR",
            pa.int8(): "TINYINT",
            pa.int32(): "INTEGER",
            pa.int64(): "BIGINT",
            pa.float32(): "REAL",
            pa.float64(): "DOUBLE",
            pa.bool_(): "BOOLEAN",
            # the Hive connector refuses any other precision than its hive.timestamp-precision
            pa.timestamp("us", tz="UTC"): "TIMESTAMP(3)",
            pa.list_(pa.string()): "ARRAY(VARCHAR)",
        },
    }
)
_HIVE_TYPES: Mapping[pa.DataType, str] = MappingProxyType(
    {
        pa.string(): "STRING",
        pa.int8(): "TINYINT",
        pa.int32(): "INT",
        pa.int64(): "BIGINT",
        pa.float32(): "FLOAT",
        pa.float64(): "DOUBLE",
        pa.bool_(): "BOOLEAN",
        pa.timestamp("us", tz="UTC"): "TIMESTAMP",
        pa.list_(pa.string()): "ARRAY<STRING>",
    }
)


def view_statements(dialect: Dialect, output_uri: str, filled: Collection[str]) -> list[str]:
    """The statements that define the views, in order, without closing semicolons.

    Args:
        dialect: who reads them.
        output_uri: the output folder with scheme.
        filled: folders (`runs`, `images`, `detections`) that hold a file; DuckDB and Spark cannot read a folder
            without one, so such a relation is made empty.
    """
    base = _BASES[dialect]
    statements = [text for table in BASE_TABLES for text in base(table, output_uri.rstrip("/"), table.folder in filled)]
    create = "CREATE OR REPLACE TEMPORARY VIEW" if dialect is Dialect.SPARK else "CREATE OR REPLACE VIEW"
    return statements + [f"-- {view.meaning}\n{create} {view.name} AS {view.query}" for view in _VIEWS]


def view_script(dialect: Dialect, output_uri: str, filled: Collection[str]) -> str:
    """The statements as one text to feed to the engine, with what it needs to know."""
    empty = [table.folder for table in BASE_TABLES if table.folder not in filled]
    notes = [f"batchdet: views for {dialect}", *_NOTES[dialect]]
    if empty and dialect in (Dialect.DUCKDB, Dialect.SPARK):
        notes.append(f"no file yet under {', '.join(empty)}: made empty here; print this again after the next run")
    header = "\n".join(f"-- {note}" for note in notes)
    return "\n\n".join([header, *(f"{text};" for text in view_statements(dialect, output_uri, filled))]) + "\n"


def _duckdb_base(table: BaseTable, uri: str, is_filled: bool) -> list[str]:
    create = f"CREATE OR REPLACE VIEW {table.name} AS"
    if not is_filled:
        return [f"{create} {_no_rows(table, Dialect.DUCKDB)}"]
    pattern = _quoted(f"{_bracketed(uri)}/{table.folder}/{table.files}")
    options = ", hive_partitioning = true, hive_types = {'run_id': VARCHAR}" if table.is_partitioned else ""
    return [f"{create} SELECT * FROM read_parquet({pattern}{options})"]  # noqa: S608


def _spark_base(table: BaseTable, uri: str, is_filled: bool) -> list[str]:
    create = f"CREATE OR REPLACE TEMPORARY VIEW {table.name}"
    if not is_filled:
        return [f"{create} AS {_no_rows(table, Dialect.SPARK)}"]
    path = _backslashed(_globless(_spark_uri(uri)) + f"/{table.folder}")
    return [f"{create} ({_declared(table.columns, Dialect.SPARK)}) USING parquet OPTIONS (path {path})"]


def _athena_base(table: BaseTable, uri: str, is_filled: bool) -> list[str]:
    partitioned = "PARTITIONED BY (run_id STRING) " if table.is_partitioned else ""
    create = (
        f"CREATE EXTERNAL TABLE IF NOT EXISTS {table.name} ({_declared(table.schema, Dialect.ATHENA)}) "
        f"{partitioned}STORED AS PARQUET LOCATION {_backslashed(f'{uri}/{table.folder}/')}"
    )
    if not table.is_partitioned:
        return [create]
    return [create, f"-- again after every run\nMSCK REPAIR TABLE {table.name}"]


def _trino_base(table: BaseTable, uri: str, is_filled: bool) -> list[str]:
    partitioned = ", partitioned_by = ARRAY['run_id']" if table.is_partitioned else ""
    create = (
        f"CREATE TABLE IF NOT EXISTS {table.name} ({_declared(table.columns, Dialect.TRINO)}) "
        f"WITH (external_location = {_quoted(f'{uri}/{table.folder}')}, format = 'PARQUET'{partitioned})"
    )
    if not table.is_partitioned:
        return [create]
    sync = f"CALL system.sync_partition_metadata(CURRENT_SCHEMA, '{table.name}', 'FULL')"
    return [create, f"-- again after every run\n{sync}"]


_BASES: Mapping[Dialect, Callable[[BaseTable, str, bool], list[str]]] = MappingProxyType(
    {
        Dialect.DUCKDB: _duckdb_base,
        Dialect.SPARK: _spark_base,
        Dialect.ATHENA: _athena_base,
        Dialect.TRINO: _trino_base,
    }
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
        ),
        Dialect.TRINO: ("for a Hive catalog: USE catalog.schema; first",),
    }
)


def _no_rows(table: BaseTable, dialect: Dialect) -> str:
    columns = ", ".join(f"CAST(NULL AS {_sql_type(field.type, dialect)}) AS {field.name}" for field in table.columns)
    return f"SELECT {columns} WHERE 1 = 0"


def _declared(columns: pa.Schema, dialect: Dialect) -> str:
    return ", ".join(f"{field.name} {_sql_type(field.type, dialect)}" for field in columns)


def _sql_type(arrow_type: pa.DataType, dialect: Dialect) -> str:
    plain = arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type
    return _TYPES.get(dialect, _HIVE_TYPES)[plain]


def _spark_uri(uri: str) -> str:
    return "s3a" + uri.removeprefix("s3") if uri.startswith("s3://") else uri


def _quoted(text: str) -> str:
    """A string literal where a quote is doubled (DuckDB, Trino)."""
    return "'" + text.replace("'", "''") + "'"


def _backslashed(text: str) -> str:
    """A string literal where a backslash escapes (Spark, Athena's DDL)."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _bracketed(uri: str) -> str:
    """The URI with DuckDB's glob characters meant literally."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in uri)


def _globless(uri: str) -> str:
    """The URI with Hadoop's glob characters meant literally."""
    return "".join(f"\\{letter}" if letter in "*?[]{}\\" else letter for letter in uri)
