"""Results on stdout: JSON, a table on a terminal, tab-separated text in a pipe. Knows no command."""

import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import date, datetime, time
from decimal import Decimal
from itertools import islice
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

TABLE_ROWS = 500
"""Rows shown on a terminal; JSON and pipes get all."""

SPOOL_BYTES = 64 << 20
"""JSON rows held in memory before they go to a temporary file."""

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def print_json(value: object) -> None:
    """One JSON document."""
    with _reader_may_leave():
        sys.stdout.write(json.dumps(plain(value), ensure_ascii=False, allow_nan=False) + "\n")


def print_json_rows(records: Iterable[Mapping[str, Any]]) -> None:
    """A JSON list, whole or not at all: rows that fail to come leave nothing on stdout.

    The document waits in memory, past SPOOL_BYTES on disk.
    """
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES, "w+", encoding="utf-8", newline="") as document:
        separator = "["
        for record in records:
            document.write(separator + json.dumps(plain(record), ensure_ascii=False, allow_nan=False))
            separator = ",\n "
        document.write("[]\n" if separator == "[" else "]\n")
        document.seek(0)
        with _reader_may_leave():
            shutil.copyfileobj(document, sys.stdout)


def print_text(text: str) -> None:
    """Text as it is."""
    with _reader_may_leave():
        sys.stdout.write(text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on a terminal, else tab-separated lines under a header, as the rows come."""
    if sys.stdout.isatty():
        _draw_table(columns, iter(rows))
        return
    with _reader_may_leave():
        sys.stdout.write("\t".join(columns) + "\n")
        for row in rows:
            sys.stdout.write("\t".join(cell(value).translate(_ESCAPES) for value in row) + "\n")


def cell(value: object) -> str:
    """A value as people read it; nothing for null."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value
    readable = plain(value)
    return readable if isinstance(readable, str) else json.dumps(readable, ensure_ascii=False)


def plain(value: object) -> Any:
    """A value as JSON has it: times in ISO 8601, bytes in hexadecimal, no NaN or infinity."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float | Decimal):
        return _number(value)
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    return str(value)


def _number(value: float | Decimal) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if isinstance(value, Decimal) and value == int(value) else float(value)


def _draw_table(columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
    table = Table(*columns)
    for row in islice(rows, TABLE_ROWS):
        table.add_row(*(Text(cell(value)) for value in row))
    Console(file=sys.stdout).print(table)
    if next(rows, None) is not None:
        sys.stderr.write(f"the first {TABLE_ROWS} rows; --json or a pipe gives all\n")


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """A reader that closes the pipe (`| head`) ends the output, not the command: its verdict still counts."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
