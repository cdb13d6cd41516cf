"""SQL over an output: DuckDB reads the committed files and can reach nothing else. Knows no detector and no run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from batchdet.analysis.committed import ROOT, CommittedFileSystem, list_committed
from batchdet.analysis.relations import Dialect
from batchdet.analysis.views import view_script, view_statements
from batchdet.errors import BatchdetError, ConfigError
from batchdet.storage.filesystem import Store

_BATCH_ROWS = 1000
_NO_EXTENSIONS = (("autoinstall_known_extensions", False), ("autoload_known_extensions", False))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query returned.

    Attributes:
        columns: names; a name that occurs again has `_1`, `_2` … appended.
        rows: values in column order, streamed while the connection is open.
    """

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows as column name to value."""
        for row in self.rows:
            yield dict(zip(self.columns, row, strict=True))


def print_views(output: Store, dialect: Dialect) -> str:
    """The view definitions of an output as SQL text.

    Raises:
        OutputError: no run has ended there.
        StorageError: it cannot be listed.
    """
    return view_script(dialect, output.uri, list_committed(output).filled)


@contextmanager
def ask(output: Store, sql: str) -> Iterator[Answer]:
    """Run SQL over the views of an output; the answer lives as long as the context.

    The statement sees committed files of this output only: no other file, no network, nothing to write to.

    Raises:
        ConfigError: it is not one statement, or DuckDB refuses it, here or while its rows are taken.
        OutputError: no run has ended there.
        StorageError: a file cannot be read.
    """
    filesystem = CommittedFileSystem(list_committed(output))
    with duckdb.connect(":memory:", config=dict(_NO_EXTENSIONS)) as connection, _mapped(filesystem):
        define_views(connection, filesystem)
        yield _answer(connection, sql, filesystem)


def ask_columns(output: Store, sql: str) -> pa.Table:
    """The whole answer to a query as columns; see `ask`."""
    filesystem = CommittedFileSystem(list_committed(output))
    with duckdb.connect(":memory:", config=dict(_NO_EXTENSIONS)) as connection, _mapped(filesystem):
        define_views(connection, filesystem)
        reader = _reader(connection, sql)
        return pa.Table.from_batches(list(_batches(reader, filesystem)), schema=reader.schema)


def define_views(connection: duckdb.DuckDBPyConnection, filesystem: CommittedFileSystem) -> None:
    """Make the views of an output known to a connection, which from then on can reach nothing else."""
    connection.register_filesystem(filesystem)
    connection.execute(f"SET allowed_directories = ['{ROOT}/']")
    for setting in ("enable_external_access = false", "python_enable_replacements = false", "TimeZone = 'UTC'"):
        connection.execute(f"SET {setting}")
    for statement in view_statements(Dialect.DUCKDB, ROOT, filesystem.files.filled):
        connection.execute(statement)
    connection.execute("SET lock_configuration = true")


def _answer(connection: duckdb.DuckDBPyConnection, sql: str, filesystem: CommittedFileSystem) -> Answer:
    reader = _reader(connection, sql)
    return Answer(_distinct(reader.schema.names), _rows(reader, filesystem))


def _reader(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.RecordBatchReader:
    count = len(connection.extract_statements(sql))
    if count != 1:
        said = f"expected one statement, got {count}" if count else "the statement is empty"
        raise ConfigError(f"SQL: {said}; give one SELECT over the views")
    relation: duckdb.DuckDBPyRelation | None = connection.sql(sql)
    if relation is None:
        return pa.RecordBatchReader.from_batches(pa.schema([]), [])
    # Arrow, not fetchmany: that one wants pytz for timestamps with a zone.
    return pa.RecordBatchReader.from_stream(relation)


def _rows(reader: pa.RecordBatchReader, filesystem: CommittedFileSystem) -> Iterator[tuple[Any, ...]]:
    for batch in _batches(reader, filesystem):
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            part = batch.slice(start, _BATCH_ROWS)
            yield from zip(*(column.to_pylist() for column in part.columns), strict=True)


def _batches(reader: pa.RecordBatchReader, filesystem: CommittedFileSystem) -> Iterator[pa.RecordBatch]:
    """The batches; what DuckDB meets on the way comes through Arrow as an error of Arrow's."""
    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise _refusal(error, filesystem) from error
        yield batch


def _distinct(names: list[str]) -> tuple[str, ...]:
    found: list[str] = []
    for name in names:
        candidate, number = name, 0
        while candidate in found:
            number += 1
            candidate = f"{name}_{number}"
        found.append(candidate)
    return tuple(found)


@contextmanager
def _mapped(filesystem: CommittedFileSystem) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise _refusal(error, filesystem) from error


def _refusal(error: Exception, filesystem: CommittedFileSystem) -> BatchdetError:
    return filesystem.failure or ConfigError(f"SQL: {one_line(str(error))}")


def one_line(message: str) -> str:
    """DuckDB's message without the excerpt that points into the statement."""
    return " ".join(message.partition("\n\nLINE ")[0].split())
