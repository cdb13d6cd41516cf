"""Parquet read in the caller's own thread. Knows no columns.

Arrow's threads, given a Python file, can outlive the read by the moment it takes to let go of the file; an interpreter
that ends in that moment aborts. So neither read-ahead nor decoding threads ever hold a Python object here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


@contextmanager
def opened(stream: BinaryIO, dictionaries: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """The file, for its metadata and for `read_rows`; it closes with the context.

    Args:
        stream: closed with the file.
        dictionaries: text columns to read as dictionaries.

    Raises:
        pa.ArrowInvalid: it is not Parquet.
    """
    with stream, pq.ParquetFile(stream, pre_buffer=False, read_dictionary=list(dictionaries)) as file:
        yield file


def read_rows(file: pq.ParquetFile, columns: Sequence[str] | None = None, row_group: int | None = None) -> pa.Table:
    """Rows of all row groups or of one.

    Args:
        file: from `opened`.
        columns: their names; None for all.
        row_group: its number; None for all.
    """
    names = None if columns is None else list(columns)
    if row_group is None:
        return file.read(columns=names, use_threads=False)
    return file.read_row_group(row_group, columns=names, use_threads=False)
