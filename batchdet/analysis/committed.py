"""The committed files of an output as a filesystem that can only be read. Knows no SQL.

Runs that are not complete, and anything else that lies in the folder, do not exist for who reads through it.
"""

import fnmatch
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import IO, Any

from fsspec import AbstractFileSystem

from batchdet.analysis.history import read_history
from batchdet.errors import NotFoundError, OutputError, StorageError
from batchdet.storage.filesystem import Store
from batchdet.storage.ranged import RangedFile

PROTOCOL = "batchdet-output"
ROOT = f"{PROTOCOL}://output"
"""What the committed files are found under; joined to a name by a slash."""

_WHOLE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class CommittedFiles:
    """Files of complete runs.

    Attributes:
        sizes: bytes by name relative to the store, sorted by name.
    """

    store: Store
    sizes: Mapping[str, int]

    @property
    def filled(self) -> frozenset[str]:
        """Folders that hold a file."""
        return frozenset(name.partition("/")[0] for name in self.sizes)


def list_committed(output: Store) -> CommittedFiles:
    """The run rows of an output, and the files of its complete runs.

    Raises:
        OutputError: no run has ended there.
        SchemaVersionError: another schema version wrote it.
        StorageError: it cannot be listed.
    """
    history = read_history(output)
    rows = history.closed
    if not rows:
        raise OutputError(
            f"{output.uri}: no run has ended yet; run {history.run_ids[0]} is open, label goes on with it"
        )
    complete = {row.run_id for row in rows if row.status == "complete"}
    row_files = {f"runs/{row.run_id}.parquet" for row in rows}
    sizes = {name: size for name, size in output.sizes("runs").items() if name in row_files}
    for table in ("images", "detections"):
        sizes |= {name: size for name, size in output.sizes(table).items() if _run_of(name) in complete}
    return CommittedFiles(output, dict(sorted(sizes.items())))


def _run_of(name: str) -> str:
    parts = name.split("/")
    is_shard = len(parts) == 3 and parts[2].startswith("shard-") and parts[2].endswith(".parquet")
    return parts[1].removeprefix("run_id=") if is_shard else ""


class CommittedFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """What DuckDB reads through: `batchdet-output://<name>`; nothing else exists, and nothing can be written.

    Attributes:
        failure: the last storage error met; DuckDB passes on only its text.
    """

    protocol = PROTOCOL
    cachable = False

    def __init__(self, files: CommittedFiles) -> None:
        super().__init__()
        self.files = files
        self.failure: StorageError | None = None

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> list[str]:
        """Names that match."""
        pattern = _name(path)
        return [f"{ROOT}/{name}" for name in self.files.sizes if fnmatch.fnmatchcase(name, pattern)]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Name, size and type, as listed."""
        return {"name": path, "size": self._size(path), "type": "file"}

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether it is a committed file."""
        return _name(path) in self.files.sizes

    def modified(self, path: str) -> datetime:
        """A constant: a committed file of a complete run does not change."""
        self._size(path)
        return datetime.fromtimestamp(0, UTC)

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> IO[bytes] | RangedFile:
        """The file, for reading: a small one whole, of a large one what is asked for."""
        size = self._size(path)
        if mode != "rb":
            raise PermissionError(f"{path}: the output can only be read")
        with self._noted():
            if size <= _WHOLE_BYTES:
                return io.BytesIO(self.files.store.read_bytes(_name(path)))
            source = self.files.store.open_input(_name(path))
        return RangedFile(size, partial(self._read_range, source))

    def _read_range(self, source: IO[bytes], start: int, end: int) -> bytes:
        with self._noted():
            source.seek(start)
            return source.read(end - start)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            self.failure = error
            raise

    def _size(self, path: str) -> int:
        try:
            return self.files.sizes[_name(path)]
        except KeyError as error:
            raise NotFoundError(path, "not a committed file of this output") from error


def _name(path: str) -> str:
    return path.removeprefix(f"{ROOT}/")
