"""Record batches cut anew. Knows no columns."""

from collections.abc import Iterable, Iterator

import pyarrow as pa


def exact_batches(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of `rows`, fewer in the last."""
    held: list[pa.RecordBatch] = []
    missing = rows
    for batch in batches:
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
