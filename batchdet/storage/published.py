"""What a table of a table format is to hold, and what became of it. Knows no format."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

RUN_COLUMN = "run_id"
"""The column that the files of a partitioned table have in their path and not inside."""


@dataclass(frozen=True, slots=True)
class WantedTable:
    """A table as it is to be.

    Attributes:
        name: also its folder in the output.
        schema: columns of the newest files; older files may lack the last ones.
        is_partitioned: its files lie in `<name>/run_id=<run_id>/`, and lack the column.
        files: bytes by name, relative to the output: all of the table, and nothing else.
    """

    name: str
    schema: pa.Schema
    is_partitioned: bool
    files: Mapping[str, int]

    @property
    def columns(self) -> pa.Schema:
        """Columns as readers see them: text is text however a file encodes it, and the run is one of them."""
        fields = [field.with_type(_plain(field.type)) for field in self.schema]
        return pa.schema(fields + [pa.field(RUN_COLUMN, pa.string())] * self.is_partitioned)


@dataclass(frozen=True, slots=True)
class Publication:
    """What became of one table.

    Attributes:
        table: images, detections or runs.
        version: the format's own: Delta's version, Iceberg's snapshot id; what time travel asks for.
        files_added: registered by this publication.
        files_removed: no longer registered.
    """

    table: str
    version: str
    files_added: int
    files_removed: int

    @property
    def changed(self) -> bool:
        """Whether there was anything to do."""
        return bool(self.files_added or self.files_removed)


def run_of(name: str) -> str:
    """The run of a file of the output, from its name."""
    return name.partition(f"/{RUN_COLUMN}=")[2].partition("/")[0] or name.rpartition("/")[2].removesuffix(".parquet")


def runs_of(names: Iterable[str]) -> list[str]:
    """The runs of files, ascending."""
    return sorted({run_of(name) for name in names})


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
