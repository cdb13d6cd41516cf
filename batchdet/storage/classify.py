"""A listing minus what earlier runs already hold, in bounded memory. Knows no shards and no model.

No row becomes a Python object: rows go to local Parquet as they arrive, and DuckDB joins and sorts them out of core.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from batchdet.errors import SourceError
from batchdet.records import PlanCounts
from batchdet.storage.schema import KNOWN, LISTING

_MEMORY_LIMIT = "400MB"
_THREADS = 2
_BATCH_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Classified:
    """A classified listing on local disk.

    Attributes:
        counts: by class.
    """

    counts: PlanCounts
    _connection: duckdb.DuckDBPyConnection

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """The images to label, sorted by image_uri in UTF-8 byte order, `rows` at a time (fewer in the last)."""
        query = f"SELECT {', '.join(LISTING.names)} FROM planned ORDER BY image_uri"  # noqa: S608
        held: list[pa.RecordBatch] = []
        missing = rows
        for batch in self._connection.sql(query).to_arrow_reader(_BATCH_ROWS):
            while batch.num_rows >= missing:
                yield _joined([*held, batch.slice(0, missing)])
                batch = batch.slice(missing)
                held, missing = [], rows
            held.append(batch)
            missing -= batch.num_rows
        if missing < rows:
            yield _joined(held)


def _joined(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.Table.from_batches(parts).combine_chunks().to_batches()[0]


@contextmanager
def classified(
    listing: Iterable[pa.RecordBatch], known: Iterable[pa.RecordBatch], retry_failed: bool
) -> Iterator[Classified]:
    """Classify a listing against what is known; the local files live as long as the context.

    Args:
        listing: batches of `schema.LISTING`, in any order; a URI listed twice counts once.
        known: batches of `schema.KNOWN`; of several rows of one URI that of the greatest run_id counts.
        retry_failed: plan unchanged images again that failed.
    """
    with tempfile.TemporaryDirectory(prefix="batchdet-plan-") as folder, duckdb.connect() as connection:
        root = Path(folder)
        _spill(listing, LISTING, root / "listed.parquet")
        has_known = _spill(known, KNOWN, root / "latest.parquet")
        connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
        connection.execute(f"SET threads = {_THREADS}")
        connection.execute("SET preserve_insertion_order = false")
        connection.execute(f"SET temp_directory = {_quote(root / 'spill')}")
        _define(connection, root, "listed", "last_modified DESC NULLS LAST, etag NULLS LAST, size_bytes NULLS LAST")
        _define(connection, root, "latest", "run_id DESC")
        if has_known:
            planned = _quote(root / "planned.parquet")
            connection.execute(
                f"COPY ({_planned_sql(retry_failed)}) TO {planned} (FORMAT parquet, COMPRESSION lz4_raw)"
            )
            connection.execute(f"CREATE VIEW planned AS SELECT * FROM read_parquet({planned})")  # noqa: S608
        else:
            connection.execute("CREATE VIEW planned AS SELECT *, 'new' AS class FROM listed")
        yield Classified(_counts(connection), connection)


def _define(connection: duckdb.DuckDBPyConnection, root: Path, name: str, first: str) -> None:
    """A view of a file's rows, one a URI; of several the first in this order."""
    path = root / f"{name}.parquet"
    # A window costs more than all else together, and rows that come twice are rare.
    sql = f"SELECT count(*), count(DISTINCT hash(image_uri)) FROM read_parquet({_quote(path)})"  # noqa: S608
    rows, distinct = connection.execute(sql).fetchall()[0]
    if rows != distinct:
        once = root / f"{name}-once.parquet"
        connection.execute(f"""
            COPY (SELECT * FROM read_parquet({_quote(path)})
                QUALIFY row_number() OVER (PARTITION BY image_uri ORDER BY {first}) = 1)
            TO {_quote(once)} (FORMAT parquet, COMPRESSION lz4_raw)
        """)  # noqa: S608
        path = once
    connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({_quote(path)})")  # noqa: S608


def _spill(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> bool:
    """Write the batches to a local file; whether there were rows."""
    rows = 0
    try:
        with pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=False) as writer:
            for batch in batches:
                writer.write_batch(batch.cast(schema), row_group_size=122_880)
                rows += batch.num_rows
    except pa.ArrowInvalid as error:
        raise SourceError(f"listing: {error}") from error
    return rows > 0


def _planned_sql(retry_failed: bool) -> str:
    return f"""
    SELECT * FROM (SELECT l.*, CASE
        WHEN k.image_uri IS NULL OR k.status = 'deleted' THEN 'new'
        WHEN l.etag IS NOT NULL AND k.etag IS NOT NULL THEN
            CASE WHEN l.etag <> k.etag THEN 'changed' ELSE {_same(retry_failed)} END
        WHEN l.size_bytes <> k.size_bytes OR l.last_modified <> k.last_modified THEN 'changed'
        ELSE {_same(retry_failed)} END AS class
    FROM listed l LEFT JOIN latest k ON l.image_uri = k.image_uri) WHERE class <> 'unchanged'
    """  # noqa: S608


def _same(retry_failed: bool) -> str:
    return "CASE WHEN k.status = 'failed' THEN 'failed' ELSE 'unchanged' END" if retry_failed else "'unchanged'"


def _counts(connection: duckdb.DuckDBPyConnection) -> PlanCounts:
    undated = " AND ".join(f"{name} IS NULL" for name in LISTING.names if name != "image_uri")
    listed, num_undated = connection.execute(f"SELECT count(*), count(*) FILTER ({undated}) FROM listed").fetchall()[0]  # noqa: S608
    rows = connection.execute("SELECT class, count(*), sum(size_bytes)::BIGINT FROM planned GROUP BY class").fetchall()
    by_class = {name: count for name, count, _ in rows}
    return PlanCounts(
        num_listed=listed,
        num_new=by_class.get("new", 0),
        num_changed=by_class.get("changed", 0),
        num_failed_retry=by_class.get("failed", 0),
        num_unchanged=listed - sum(by_class.values()),
        num_undated=num_undated,
        bytes_planned=sum(size or 0 for _, _, size in rows),
    )


def _quote(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
