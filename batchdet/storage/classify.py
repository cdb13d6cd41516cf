"""A listing held against what earlier runs know, in bounded memory. Knows no shards and no model.

No row becomes a Python object, the few that are gone excepted: rows go to local Parquet as they arrive, and DuckDB
joins and sorts them out of core.
"""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchdet.config import PlanConfig
from batchdet.errors import SourceError
from batchdet.records import PlanCounts
from batchdet.storage.batches import exact_batches
from batchdet.storage.schema import KNOWN, LABELLED_BYTES, LISTING, PLANNED, TWIN

PARTS = ("fresh", "stale", "deleted")
"""Parts of a plan, in order: new bytes or failed before, unchanged bytes to label again, known and no longer listed."""

MAX_TWINS = 32
"""Images that may share a size for it to tell possible twins: raw pictures all have one. An equal etag always does."""

_MEMORY_LIMIT = "500MB"
_THREADS = 2
_BATCH_ROWS = 65_536
_COMPARED_ROWS = 1 << 19
_WRITE = "(FORMAT parquet, COMPRESSION lz4_raw)"


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the images of earlier runs stand to the run that is planned.

    Attributes:
        same_model: runs whose labels this run would make again; None for all.
        covers: whether a URI would be listed if it were there; None: no image is taken for deleted.
        labelled_bytes: batches of `schema.LABELLED_BYTES`: labels that this run may copy where bytes are the same.
    """

    same_model: Collection[str] | None = None
    covers: Callable[[str], bool] | None = None
    labelled_bytes: Callable[[], Iterable[pa.RecordBatch]] | None = None


@dataclass(frozen=True, slots=True)
class Classified:
    """A classified listing on local disk.

    Attributes:
        counts: by class.
        num_known: images that earlier runs left labelled or failed.
    """

    counts: PlanCounts
    num_known: int
    _connection: duckdb.DuckDBPyConnection
    _root: Path
    _comparison: Comparison

    def batches(self, part: str, rows: int) -> Iterator[pa.RecordBatch]:
        """One of `PARTS`, sorted by image_uri in UTF-8 byte order, `rows` at a time (fewer in the last)."""
        rows_of_part = f"FROM planned WHERE part = '{part}'"
        bounds = self._connection.execute(f"SELECT min(image_uri), max(image_uri) {rows_of_part}").fetchall()[0]
        if None in bounds:
            return
        # Sorting is most of planning, and costs a third less without what every URI begins with.
        shared = commonprefix(bounds)  # noqa: RUF071 (characters are meant)
        others = ", ".join(PLANNED.names[1:])
        query = f"SELECT substr(image_uri, {len(shared) + 1}) AS rest, {others} {rows_of_part} ORDER BY rest"
        found = self._connection.sql(query).to_arrow_reader(_BATCH_ROWS)
        yield from exact_batches((_completed(batch, shared) for batch in found), rows)

    def find_twins(self) -> None:
        """Give each image to label those of `Comparison.labelled_bytes` whose etag or size is its own."""
        if not self.counts.num_planned or self._comparison.labelled_bytes is None:
            return
        wanted = self._connection.sql(
            "SELECT DISTINCT size_bytes, etag FROM planned WHERE part IN ('fresh', 'stale')"
        ).to_arrow_table()
        # What is wanted is hashed anew for every batch, so there are to be few.
        labelled = exact_batches(self._comparison.labelled_bytes(), _COMPARED_ROWS)
        alike = (_alike(batch, wanted) for batch in labelled)
        path = self._root / "labelled.parquet"
        if _spill(alike, LABELLED_BYTES, path):
            twinned = _quote(self._root / "twinned.parquet")
            self._connection.execute(f"COPY ({_twinned_sql(path)}) TO {twinned} {_WRITE}")
            self._connection.execute(f"CREATE OR REPLACE VIEW planned AS SELECT * FROM read_parquet({twinned})")  # noqa: S608


@contextmanager
def classified(
    listing: Iterable[pa.RecordBatch],
    known: Iterable[pa.RecordBatch],
    rules: PlanConfig,
    comparison: Comparison,
) -> Iterator[Classified]:
    """Classify a listing against what is known; the local files live as long as the context.

    Args:
        listing: batches of `schema.LISTING`, in any order; a URI listed twice counts once.
        known: batches of `schema.KNOWN`; of several rows of one URI that of the greatest run_id counts.
        rules: which of the unchanged are labelled again.
        comparison: how the known stand to this run.
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
        if not has_known:
            connection.execute(f"CREATE VIEW planned AS {_all_new_sql()}")
            yield Classified(_counts(connection), 0, connection, root, comparison)
            return
        _define(connection, root, "latest", "run_id DESC")
        _define_runs(connection, comparison)
        joined, gone = root / "joined.parquet", root / "gone.parquet"
        connection.execute(f"COPY ({_joined_sql(rules)}) TO {_quote(joined)} {_WRITE}")
        _spill(_gone(connection, joined, rules, comparison), LISTING, gone)
        connection.execute(f"CREATE VIEW planned AS {_planned_sql(joined, gone)}")
        (num_known,) = connection.execute("SELECT count(*) FROM latest WHERE status <> 'deleted'").fetchall()[0]
        yield Classified(_counts(connection), num_known, connection, root, comparison)


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
            TO {_quote(once)} {_WRITE}
        """)  # noqa: S608
        path = once
    connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({_quote(path)})")  # noqa: S608


def _completed(batch: pa.RecordBatch, shared: str) -> pa.RecordBatch:
    """The batch with whole URIs in place of their ends."""
    uris = pc.binary_join_element_wise(shared, batch.column(0).cast(pa.string()), "")  # type: ignore[call-overload]  # scalars mix with arrays
    return pa.RecordBatch.from_arrays([uris, *batch.columns[1:]], names=PLANNED.names)


def _define_runs(connection: duckdb.DuckDBPyConnection, comparison: Comparison) -> None:
    """`known_runs`: each run of the known images, and whether its labels are what this run would make."""
    same = comparison.same_model
    run_ids = [run_id for (run_id,) in connection.execute("SELECT DISTINCT run_id FROM latest").fetchall()]
    rows = pa.table(
        {
            "run_id": pa.array(run_ids, pa.string()),
            "is_same": pa.array([same is None or run_id in same for run_id in run_ids], pa.bool_()),
        }
    )
    connection.register("known_runs_rows", rows)
    connection.execute("CREATE TABLE known_runs AS SELECT * FROM known_runs_rows")
    connection.unregister("known_runs_rows")


def _gone(
    connection: duckdb.DuckDBPyConnection, joined: Path, rules: PlanConfig, comparison: Comparison
) -> Iterator[pa.RecordBatch]:
    """Known images that the listing would hold if they were there; batches of `schema.LISTING`."""
    covers = comparison.covers
    if covers is None or not rules.delete_missing:
        return
    columns = ", ".join(LISTING.names)
    query = f"SELECT {columns} FROM read_parquet({_quote(joined)}) WHERE class = 'missing'"  # noqa: S608
    for batch in connection.sql(query).to_arrow_reader(_BATCH_ROWS):
        yield batch.filter(pa.array([covers(uri) for uri in batch.column("image_uri").to_pylist()], pa.bool_()))


def _alike(batch: pa.RecordBatch, wanted: pa.Table) -> pa.RecordBatch:
    """The rows that share a size or an etag with one of the wanted."""
    found = [pc.is_in(batch.column(name), wanted.column(name).drop_null()) for name in ("size_bytes", "etag")]
    return batch.filter(pc.or_(*found))


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


_NO_TWINS = "NULL::STRUCT(image_uri VARCHAR, run_id VARCHAR, shard_id INTEGER, content_digest VARCHAR)[] AS twins"


def _all_new_sql() -> str:
    return f"SELECT *, 0::INTEGER AS failed_runs, {_NO_TWINS}, 'new' AS class, 'fresh' AS part FROM listed"  # noqa: S608


def _planned_sql(joined: Path, gone: Path) -> str:
    """All that a plan holds or counts; images of the part `resting` are only counted."""
    part = "CASE class WHEN 'stale' THEN 'stale' WHEN 'quarantined' THEN 'resting' ELSE 'fresh' END AS part"
    return f"""
    SELECT {", ".join(LISTING.names)}, failed_runs, {_NO_TWINS}, class, {part}
    FROM read_parquet({_quote(joined)}) WHERE class <> 'missing'
    UNION ALL BY NAME
    SELECT *, 0::INTEGER AS failed_runs, {_NO_TWINS}, 'deleted' AS class, 'deleted' AS part
    FROM read_parquet({_quote(gone)})
    """  # noqa: S608


def _joined_sql(rules: PlanConfig) -> str:
    """Each image with its class, the unchanged left out, and how often in a row its bytes failed."""
    same = _same_bytes_sql(rules)
    columns = ", ".join(
        f"CASE WHEN l.image_uri IS NULL THEN k.{name} ELSE l.{name} END AS {name}" for name in LISTING.names
    )
    # What is held while it is joined is kept narrow: booleans, not the names they come from.
    known = f"""
    SELECT {", ".join(LISTING.names)}, failed_runs, status = 'failed' AS has_failed, status = 'deleted' AS is_deleted,
        failure_stage = 'detect' AS has_failed_in_model, is_same FROM latest LEFT JOIN known_runs USING (run_id)
    """  # noqa: S608
    return f"""
    SELECT * FROM (SELECT {columns}, CASE
        WHEN l.image_uri IS NULL THEN CASE WHEN k.is_deleted THEN 'unchanged' ELSE 'missing' END
        WHEN k.image_uri IS NULL OR k.is_deleted THEN 'new'
        WHEN l.etag IS NOT NULL AND k.etag IS NOT NULL THEN CASE WHEN l.etag <> k.etag THEN 'changed' ELSE {same} END
        WHEN l.size_bytes <> k.size_bytes OR l.last_modified <> k.last_modified THEN 'changed'
        ELSE {same} END AS class,
        CASE WHEN class = 'failed' THEN {_FAILED_RUNS} ELSE 0 END::INTEGER AS failed_runs
    FROM listed l FULL JOIN ({known}) k ON l.image_uri = k.image_uri)
    WHERE class <> 'unchanged'
    """  # noqa: S608


_FAILED_RUNS = "CASE WHEN k.has_failed_in_model AND NOT k.is_same THEN 0 ELSE coalesce(k.failed_runs, 1) END"
"""How often in a row the bytes failed that this run would read. What failed in another model says nothing of this one;
a row of before there was a count has failed once."""


def _same_bytes_sql(rules: PlanConfig) -> str:
    """The class of an image whose bytes are those of its latest row."""
    failed = f"CASE WHEN {_FAILED_RUNS} > {rules.max_retries} THEN 'quarantined' ELSE 'failed' END"
    stale = "CASE WHEN k.is_same THEN 'unchanged' ELSE 'stale' END" if rules.relabel_stale else "'unchanged'"
    again = failed if rules.retry_failed else "'unchanged'"
    return f"CASE WHEN k.has_failed THEN {again} ELSE {stale} END"


def _twinned_sql(labelled: Path) -> str:
    """The planned images with their twins: of each etag the latest, and all of a size that few have."""
    twin = ", ".join(f"{name} := t.{name}" for name in TWIN.names)
    names = ", ".join([*LISTING.names, "failed_runs", "class", "part"])
    return f"""
    WITH labelled AS (
        SELECT * FROM read_parquet({_quote(labelled)})
        QUALIFY row_number() OVER (PARTITION BY content_digest, size_bytes, etag ORDER BY run_id DESC, image_uri) = 1
    ), by_etag AS (
        SELECT * FROM labelled WHERE etag IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY etag ORDER BY run_id DESC, image_uri) = 1
    ), by_size AS (
        SELECT * FROM (SELECT * FROM labelled WHERE size_bytes IS NOT NULL
            QUALIFY row_number() OVER (PARTITION BY content_digest, size_bytes ORDER BY run_id DESC, image_uri) = 1)
        QUALIFY count(*) OVER (PARTITION BY size_bytes) <= {MAX_TWINS}
    ), pairs AS (
        SELECT p.image_uri AS planned_uri, t.* FROM planned p JOIN by_etag t ON p.etag = t.etag
        WHERE part IN ('fresh', 'stale')
        UNION
        SELECT p.image_uri AS planned_uri, t.* FROM planned p JOIN by_size t ON p.size_bytes = t.size_bytes
        WHERE part IN ('fresh', 'stale')
    ), twinned AS (
        SELECT planned_uri, list(struct_pack({twin}) ORDER BY t.run_id DESC, t.image_uri) AS found
        FROM (SELECT DISTINCT planned_uri, {", ".join(TWIN.names)} FROM pairs) t GROUP BY planned_uri
    )
    SELECT {names}, found AS twins FROM planned LEFT JOIN twinned ON image_uri = planned_uri
    """  # noqa: S608


def _counts(connection: duckdb.DuckDBPyConnection) -> PlanCounts:
    undated = " AND ".join(f"{name} IS NULL" for name in LISTING.names if name != "image_uri")
    listed, num_undated = connection.execute(f"SELECT count(*), count(*) FILTER ({undated}) FROM listed").fetchall()[0]  # noqa: S608
    rows = connection.execute("SELECT class, count(*), sum(size_bytes)::BIGINT FROM planned GROUP BY class").fetchall()
    by_class = {name: count for name, count, _ in rows}
    num_deleted, num_quarantined = (by_class.pop(name, 0) for name in ("deleted", "quarantined"))
    return PlanCounts(
        num_listed=listed,
        num_new=by_class.get("new", 0),
        num_changed=by_class.get("changed", 0),
        num_failed_retry=by_class.get("failed", 0),
        num_unchanged=listed - sum(by_class.values()),
        num_undated=num_undated,
        bytes_planned=sum(size or 0 for name, _, size in rows if name in by_class),
        num_stale=by_class.get("stale", 0),
        num_quarantined=num_quarantined,
        num_deleted=num_deleted,
    )


def _quote(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
