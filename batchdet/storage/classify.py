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


@dataclass(frozen=True, slots=True)
class Classified:
    """A classified listing on local disk.

    Attributes:
        counts: by class.
        manifest: local Parquet file of the images to label, sorted by image_uri in UTF-8 byte order.
    """

    counts: PlanCounts
    manifest: Path

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """The manifest in order, `rows` at a time (fewer in the last)."""
        with pq.ParquetFile(self.manifest) as file:
            pending: list[pa.RecordBatch] = []
            held = 0
            for batch in file.iter_batches(batch_size=min(rows, 65_536)):
                pending.append(batch)
                held += batch.num_rows
                while held >= rows:
                    merged = pa.Table.from_batches(pending).combine_chunks()
                    yield merged.slice(0, rows).to_batches()[0]
                    rest = merged.slice(rows)
                    pending, held = rest.to_batches(), rest.num_rows
            if held:
                yield pa.Table.from_batches(pending).combine_chunks().to_batches()[0]


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
    with tempfile.TemporaryDirectory(prefix="batchdet-plan-") as folder:
        root = Path(folder)
        _spill(listing, LISTING, root / "listing.parquet")
        _spill(known, KNOWN, root / "known.parquet")
        with duckdb.connect(root / "plan.duckdb") as connection:
            connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
            connection.execute(f"SET threads = {_THREADS}")
            connection.execute("SET preserve_insertion_order = false")
            connection.execute(f"SET temp_directory = {_quote(root / 'spill')}")
            connection.execute(_classify_sql(root, retry_failed))
            counts = _counts(connection)
            manifest = root / "manifest.parquet"
            connection.execute(_manifest_sql(manifest))
        yield Classified(counts, manifest)


def _spill(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> None:
    try:
        with pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=False) as writer:
            for batch in batches:
                writer.write_batch(batch.cast(schema), row_group_size=122_880)
    except pa.ArrowInvalid as error:
        raise SourceError(f"listing: {error}") from error


def _classify_sql(root: Path, retry_failed: bool) -> str:
    return f"""
    CREATE TABLE classified AS
    WITH listed AS (
        SELECT * FROM read_parquet({_quote(root / "listing.parquet")})
        QUALIFY row_number() OVER (
            PARTITION BY image_uri ORDER BY last_modified DESC NULLS LAST, etag NULLS LAST, size_bytes NULLS LAST) = 1
    ), latest AS (
        SELECT * FROM read_parquet({_quote(root / "known.parquet")})
        QUALIFY row_number() OVER (PARTITION BY image_uri ORDER BY run_id DESC) = 1
    )
    SELECT l.*, CASE
        WHEN k.image_uri IS NULL OR k.status = 'deleted' THEN 'new'
        WHEN l.etag IS NOT NULL AND k.etag IS NOT NULL THEN
            CASE WHEN l.etag <> k.etag THEN 'changed' ELSE {_same(retry_failed)} END
        WHEN l.size_bytes <> k.size_bytes OR l.last_modified <> k.last_modified THEN 'changed'
        ELSE {_same(retry_failed)} END AS class
    FROM listed l LEFT JOIN latest k ON l.image_uri = k.image_uri
    """  # noqa: S608


def _manifest_sql(manifest: Path) -> str:
    return f"""
    COPY (SELECT {", ".join(LISTING.names)} FROM classified WHERE class <> 'unchanged' ORDER BY image_uri)
    TO {_quote(manifest)} (FORMAT parquet, COMPRESSION lz4_raw)
    """  # noqa: S608


def _same(retry_failed: bool) -> str:
    return "CASE WHEN k.status = 'failed' THEN 'failed' ELSE 'unchanged' END" if retry_failed else "'unchanged'"


def _counts(connection: duckdb.DuckDBPyConnection) -> PlanCounts:
    undated = " AND ".join(f"{name} IS NULL" for name in LISTING.names if name != "image_uri")
    rows = connection.execute(
        f"SELECT class, count(*), count(*) FILTER ({undated}), sum(size_bytes)::BIGINT FROM classified GROUP BY class"  # noqa: S608
    ).fetchall()
    by_class = {name: count for name, count, _, _ in rows}
    return PlanCounts(
        num_listed=sum(by_class.values()),
        num_new=by_class.get("new", 0),
        num_changed=by_class.get("changed", 0),
        num_failed_retry=by_class.get("failed", 0),
        num_unchanged=by_class.get("unchanged", 0),
        num_undated=sum(count for _, _, count, _ in rows),
        bytes_planned=sum(size or 0 for name, _, _, size in rows if name != "unchanged"),
    )


def _quote(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
