"""The committed files of an output as relations, spelled for each SQL engine. Knows columns and quoting; opens nothing.

One row per row of a committed file:  runs · all_images · all_detections (both with run_id)

An engine is told the columns, so that files written before a column was added read as null there, and files of a later
batchdet show no more than is known here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from urllib.parse import quote

import pyarrow as pa

from batchdet.storage.schema import ADDED_COLUMNS, DETECTIONS, IMAGES, RUNS


class Dialect(StrEnum):
    """An engine that reads the output."""

    DUCKDB = "duckdb"
    SPARK = "spark"
    ATHENA = "athena"
    TRINO = "trino"
    BIGQUERY = "bigquery"
    DATAFUSION = "datafusion"


DATASET = "batchdet"
"""BigQuery's dataset: a view there must name the dataset of what it reads."""


@dataclass(frozen=True, slots=True)
class BaseTable:
    """A folder of Parquet files and the relation it becomes.

    Attributes:
        folder: under the output.
        files: pattern of its files below the folder.
        is_partitioned: files lie in `run_id=<run_id>` folders; run_id is a column of the relation only.
        added: columns that older files may lack.
    """

    name: str
    folder: str
    files: str
    schema: pa.Schema
    is_partitioned: bool
    added: frozenset[str] = ADDED_COLUMNS

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

_ANSI_TYPES: Mapping[pa.DataType, str] = MappingProxyType(
    {
        pa.string(): "VARCHAR",
        pa.int8(): "TINYINT",
        pa.int32(): "INTEGER",
        pa.int64(): "BIGINT",
        pa.float32(): "REAL",
        pa.float64(): "DOUBLE",
        pa.bool_(): "BOOLEAN",
        pa.timestamp("us", tz="UTC"): "TIMESTAMP WITH TIME ZONE",
        pa.list_(pa.string()): "VARCHAR[]",
    }
)
_TRINO_TYPES: Mapping[pa.DataType, str] = MappingProxyType(
    {
        **_ANSI_TYPES,
        # the Hive connector refuses any other precision than its hive.timestamp-precision
        pa.timestamp("us", tz="UTC"): "TIMESTAMP(3)",
        pa.list_(pa.string()): "ARRAY(VARCHAR)",
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
_BIGQUERY_TYPES: Mapping[pa.DataType, str] = MappingProxyType(
    {
        pa.string(): "STRING",
        **dict.fromkeys((pa.int8(), pa.int32(), pa.int64()), "INT64"),
        **dict.fromkeys((pa.float32(), pa.float64()), "FLOAT64"),
        pa.bool_(): "BOOL",
        pa.timestamp("us", tz="UTC"): "TIMESTAMP",
        pa.list_(pa.string()): "ARRAY<STRING>",
    }
)


def base_statements(dialect: Dialect, table: BaseTable, output_uri: str, is_filled: bool) -> list[str]:
    """The statements that make the relation of a table.

    Args:
        dialect: who reads them.
        table: what lies in the folder.
        output_uri: the output folder with scheme, without a slash at its end.
        is_filled: whether the folder holds a file; DuckDB and Spark cannot read one without, so such a relation is made
            empty there.
    """
    return _BASES[dialect](table, output_uri, is_filled)


def relation_name(dialect: Dialect, name: str) -> str:
    """How the dialect names a relation or view."""
    return f"{DATASET}.{name}" if dialect is Dialect.BIGQUERY else name


def _duckdb_base(table: BaseTable, uri: str, is_filled: bool) -> list[str]:
    create = f"CREATE OR REPLACE VIEW {table.name} AS"
    if not is_filled:
        return [f"{create} {_no_rows(table, _ANSI_TYPES)}"]
    pattern = _quoted(f"{_bracketed(uri)}/{table.folder}/{table.files}")
    columns = ", ".join(table.schema.names)
    if table.folder == "detections" and not table.added & set(table.schema.names):
        # Undeclared columns come from one file's footer, so every file must have them; in return a join prunes files.
        hive = "hive_partitioning = true, hive_types = {'run_id': VARCHAR}"
        return [f"{create} SELECT {columns}, run_id FROM read_parquet({pattern}, {hive})"]  # noqa: S608
    # With declared columns DuckDB knows no partitions, but prunes by an expression of the file's name.
    run_id = ", regexp_extract(filename, '/run_id=([^/]+)/[^/]+$', 1) AS run_id" if table.is_partitioned else ""
    return [f"{create} SELECT {columns}{run_id} FROM read_parquet({pattern}, schema = {_duckdb_schema(table.schema)})"]  # noqa: S608


def _duckdb_schema(columns: pa.Schema) -> str:
    """The `schema` option of `read_parquet`: columns by name, null where a file lacks one."""
    fields = ", ".join(
        f"'{field.name}': {{name: '{field.name}', type: '{_sql_type(field.type, _ANSI_TYPES)}', default_value: NULL}}"
        for field in columns
    )
    return f"MAP {{{fields}}}"


def _spark_base(table: BaseTable, uri: str, is_filled: bool) -> list[str]:
    create = f"CREATE OR REPLACE TEMPORARY VIEW {table.name}"
    if not is_filled:
        return [f"{create} AS {_no_rows(table, _HIVE_TYPES)}"]
    path = _backslashed(_globless(_spark_uri(uri)) + f"/{table.folder}")
    return [f"{create} ({_declared(table.columns, _HIVE_TYPES)}) USING parquet OPTIONS (path {path})"]


def _athena_base(table: BaseTable, uri: str, is_filled: bool) -> list[str]:
    partitioned = "PARTITIONED BY (run_id STRING) " if table.is_partitioned else ""
    create = (
        f"CREATE EXTERNAL TABLE IF NOT EXISTS {table.name} ({_declared(table.schema, _HIVE_TYPES)}) "
        f"{partitioned}STORED AS PARQUET LOCATION {_backslashed(f'{uri}/{table.folder}/')}"
    )
    if not table.is_partitioned:
        return [create]
    return [create, f"-- again after every run\nMSCK REPAIR TABLE {table.name}"]


def _trino_base(table: BaseTable, uri: str, is_filled: bool) -> list[str]:
    partitioned = ", partitioned_by = ARRAY['run_id']" if table.is_partitioned else ""
    create = (
        f"CREATE TABLE IF NOT EXISTS {table.name} ({_declared(table.columns, _TRINO_TYPES)}) "
        f"WITH (external_location = {_quoted(f'{uri}/{table.folder}')}, format = 'PARQUET'{partitioned})"
    )
    if not table.is_partitioned:
        return [create]
    sync = f"CALL system.sync_partition_metadata(CURRENT_SCHEMA, '{table.name}', 'FULL')"
    return [create, f"-- again after every run\n{sync}"]


def _bigquery_base(table: BaseTable, uri: str, is_filled: bool) -> list[str]:
    folder = f"{uri}/{table.folder}"
    # one `*` is all BigQuery takes; it stands for folders too
    options = [f"format = 'PARQUET', enable_list_inference = TRUE, uris = [{_backslashed(f'{folder}/*.parquet')}]"]
    partitioned = ""
    if table.is_partitioned:
        partitioned = "WITH PARTITION COLUMNS (run_id STRING) "
        options.append(f"hive_partition_uri_prefix = {_backslashed(folder)}")
    name = relation_name(Dialect.BIGQUERY, table.name)
    columns = _declared(table.schema, _BIGQUERY_TYPES)
    return [f"CREATE OR REPLACE EXTERNAL TABLE {name} ({columns}) {partitioned}OPTIONS ({', '.join(options)})"]


def _datafusion_base(table: BaseTable, uri: str, is_filled: bool) -> list[str]:
    partitioned = "PARTITIONED BY (run_id) " if table.is_partitioned else ""
    return [
        f"CREATE OR REPLACE EXTERNAL TABLE {table.name} ({_declared(table.columns, _ANSI_TYPES)}) "
        f"STORED AS PARQUET {partitioned}LOCATION {_quoted(_datafusion_location(table, uri))}"
    ]


def _datafusion_location(table: BaseTable, uri: str) -> str:
    """The folder; on a disk a pattern in it, as a crash leaves hidden files there and DataFusion reads all it finds."""
    path = uri.removeprefix("file://")
    if path != uri and not any(letter in path for letter in "*?["):
        return f"{path}/{table.folder}/{'**/' if table.is_partitioned else ''}*.parquet"
    return f"{_percent_encoded(uri)}/{table.folder}/"


_BASES: Mapping[Dialect, Callable[[BaseTable, str, bool], list[str]]] = MappingProxyType(
    {
        Dialect.DUCKDB: _duckdb_base,
        Dialect.SPARK: _spark_base,
        Dialect.ATHENA: _athena_base,
        Dialect.TRINO: _trino_base,
        Dialect.BIGQUERY: _bigquery_base,
        Dialect.DATAFUSION: _datafusion_base,
    }
)


def _no_rows(table: BaseTable, types: Mapping[pa.DataType, str]) -> str:
    columns = ", ".join(f"CAST(NULL AS {_sql_type(field.type, types)}) AS {field.name}" for field in table.columns)
    return f"SELECT {columns} WHERE 1 = 0"


def _declared(columns: pa.Schema, types: Mapping[pa.DataType, str]) -> str:
    return ", ".join(f"{field.name} {_sql_type(field.type, types)}" for field in columns)


def _sql_type(arrow_type: pa.DataType, types: Mapping[pa.DataType, str]) -> str:
    return types[arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type]


def _spark_uri(uri: str) -> str:
    return "s3a" + uri.removeprefix("s3") if uri.startswith("s3://") else uri


def _quoted(text: str) -> str:
    """A string literal where a quote is doubled (DuckDB, Trino, DataFusion)."""
    return "'" + text.replace("'", "''") + "'"


def _backslashed(text: str) -> str:
    """A string literal where a backslash escapes (Spark, Athena's DDL, BigQuery)."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _bracketed(uri: str) -> str:
    """The URI with DuckDB's glob characters meant literally."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in uri)


def _globless(uri: str) -> str:
    """The URI with Hadoop's glob characters meant literally."""
    return "".join(f"\\{letter}" if letter in "*?[]{}\\" else letter for letter in uri)


def _percent_encoded(uri: str) -> str:
    """The URI as a URL: DataFusion decodes it, and takes it for no pattern."""
    scheme, separator, path = uri.partition("://")
    return f"{scheme}{separator}{quote(path, safe='/')}"
