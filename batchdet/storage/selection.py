"""Which committed row of each image counts, and in which file it lies; out of core. Knows no policy and no model.

Rows go to local Parquet as they are read, and DuckDB finds the latest and sorts them within a bound of memory.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchdet.storage.batches import exact_batches
from batchdet.storage.ledger import Ledger, shard_file
from batchdet.storage.parquet import opened, read_rows
from batchdet.storage.prefetch import prefetch
from batchdet.storage.schema import BACKEND_KEY, LISTING, check_schema_version

SELECTED = pa.schema([*LISTING, pa.field("run", pa.int32()), pa.field("shard_id", pa.int32())])
"""A row that counts: what was listed, and where it lies; `run` is the place of its run among those selected from."""

_MEMORY_LIMIT = "400MB"
_THREADS = 2
_BATCH_ROWS = 65_536
_READ_THREADS = 8
_READ_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Share:
    """What of a run counts.

    Attributes:
        num_images: rows, those of deleted images left out.
        num_deleted: rows of deleted images.
        num_files: shards in which any of the first lie.
        backends: what computed the run's rows, as its files say, sorted.
    """

    num_images: int = 0
    num_deleted: int = 0
    num_files: int = 0
    backends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """The latest row of each image.

    Attributes:
        run_ids: the runs selected from, ascending.
        shares: of each of them, by its id.
    """

    run_ids: tuple[str, ...]
    shares: dict[str, Share]
    _connection: duckdb.DuckDBPyConnection

    def batches(self, run_ids: Sequence[str], rows: int, *, deleted: bool = False) -> Iterator[pa.RecordBatch]:
        """Rows of `SELECTED` that lie in these runs, by image_uri in UTF-8 byte order, `rows` at a time.

        Args:
            run_ids: of those selected from.
            rows: of every batch but the last.
            deleted: the rows of deleted images instead of all others.
        """
        numbers = [self.run_ids.index(run_id) for run_id in run_ids]
        query = (
            f"SELECT {', '.join(SELECTED.names)} FROM latest WHERE list_contains(?::INT[], run) "  # noqa: S608
            f"AND (status = 'deleted') = {deleted} ORDER BY image_uri"
        )
        found = self._connection.cursor().sql(query, params=[numbers])
        for batch in exact_batches(found.to_arrow_reader(_BATCH_ROWS), rows):
            yield batch.cast(SELECTED)


@contextmanager
def select_latest(ledger: Ledger, run_ids: Sequence[str]) -> Iterator[Selection]:
    """The latest row of each image in these runs; local files live as long as the context.

    Raises:
        SchemaVersionError: a run was written with another schema version.
        StorageError: a file cannot be read.
    """
    ascending = tuple(sorted(run_ids))
    with tempfile.TemporaryDirectory(prefix="batchdet-select-") as folder, duckdb.connect() as connection:
        backends = _spill(ledger, ascending, Path(folder) / "rows.parquet")
        connection.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
        connection.execute(f"SET threads = {_THREADS}")
        connection.execute(f"SET temp_directory = {_quote(Path(folder) / 'spill')}")
        _define_latest(connection, Path(folder))
        yield Selection(ascending, _shares(connection, ascending, backends), connection)


def _spill(ledger: Ledger, run_ids: Sequence[str], path: Path) -> dict[int, set[str]]:
    """Write the rows of all images files to a local file; what computed them, by run."""
    schema = pa.schema([*SELECTED, pa.field("status", pa.string())])
    shards = [(run, shard_id) for run, run_id in enumerate(run_ids) for shard_id in sorted(ledger.committed(run_id))]
    backends: dict[int, set[str]] = {}
    with (
        pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=False) as writer,
        closing(
            prefetch(shards, partial(_read_shard, ledger, run_ids), _READ_THREADS, _READ_BYTES, _READ_THREADS)
        ) as tables,
    ):
        for (run, _), table in zip(shards, tables, strict=True):
            backend = (table.schema.metadata or {}).get(BACKEND_KEY)
            backends.setdefault(run, set()).update([backend.decode()] if backend else [])
            writer.write_table(table.select(schema.names).cast(schema))
    return backends


def _read_shard(ledger: Ledger, run_ids: Sequence[str], shard: tuple[int, int]) -> pa.Table:
    run, shard_id = shard
    name = shard_file("images", run_ids[run], shard_id)
    with opened(ledger.output.open_input(name)) as file:
        check_schema_version(file.schema_arrow.metadata, ledger.output.child_uri(name))
        table = read_rows(file, [*LISTING.names, "status"])
    for column, value in (("run", run), ("shard_id", shard_id)):
        table = table.append_column(column, pa.array(np.full(len(table), value, np.int32)))
    return table


def _define_latest(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    rows = f"read_parquet({_quote(root / 'rows.parquet')})"
    count, distinct = connection.execute(
        f"SELECT count(*), count(DISTINCT hash(image_uri)) FROM {rows}"  # noqa: S608
    ).fetchall()[0]
    if count != distinct:
        # A window costs more than all else together, so it is taken only where an image has several rows.
        once = _quote(root / "latest.parquet")
        connection.execute(f"""
            COPY (SELECT * FROM {rows} QUALIFY row_number() OVER (PARTITION BY image_uri ORDER BY run DESC) = 1)
            TO {once} (FORMAT parquet, COMPRESSION lz4_raw)
        """)  # noqa: S608
        rows = f"read_parquet({once})"
    connection.execute(f"CREATE VIEW latest AS SELECT * FROM {rows}")  # noqa: S608


def _shares(
    connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str], backends: dict[int, set[str]]
) -> dict[str, Share]:
    found = connection.execute("""
        SELECT run, count(*) FILTER (status <> 'deleted'), count(*) FILTER (status = 'deleted'),
            count(DISTINCT shard_id) FILTER (status <> 'deleted')
        FROM latest GROUP BY run
    """).fetchall()
    counted = {run: (images, deleted, files) for run, images, deleted, files in found}
    return {
        run_id: Share(*counted.get(run, (0, 0, 0)), tuple(sorted(backends.get(run, ()))))
        for run, run_id in enumerate(run_ids)
    }


def _quote(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
