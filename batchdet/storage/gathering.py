"""Rows of chosen images out of committed files. Knows no policy and no plan.

Shape shorthand: N chosen images, D detections of all of them together.
"""

import io
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchdet.errors import OutputError
from batchdet.records import IntArray
from batchdet.storage.filesystem import Store
from batchdet.storage.ledger import shard_file
from batchdet.storage.parquet import opened, read_rows
from batchdet.storage.schema import DETECTIONS, IMAGES, check_schema_version

CACHE_BYTES = 512 << 20
"""Files are kept as they are stored, for the images that follow, up to so many bytes together."""
WHOLE_BYTES = 128 << 20
"""Files up to this size are read whole, in one request; of larger ones the row groups that are needed."""

_THREADS = 8


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of N images with their detections.

    Attributes:
        images: [N] rows of `schema.IMAGES`.
        detections: [D] rows of `schema.DETECTIONS`, by image in the order of `images`.
        owner: [D] int64, the place of each detection's image among `images`; non-decreasing.
    """

    images: pa.Table
    detections: pa.Table
    owner: IntArray


@dataclass(frozen=True, slots=True)
class _File:
    """A shard, and which of the chosen images lie in it.

    Attributes:
        places: ascending, in the choice.
        uris: as many, ascending.
    """

    run_id: str
    shard_id: int
    places: IntArray
    uris: Any


class Gatherer:
    """Reads rows of images chosen by ascending URI; a file that stays in use is fetched once."""

    def __init__(self, output: Store, run_ids: Sequence[str]) -> None:
        """Read from an output.

        Args:
            output: the output folder.
            run_ids: what `run` of a choice counts.
        """
        self._output = output
        self._run_ids = run_ids
        self._held: OrderedDict[str, bytes] = OrderedDict()

    def gather(self, chosen: pa.RecordBatch) -> Rows:
        """The rows of the chosen images, in their order.

        Args:
            chosen: rows of `selection.SELECTED`, ascending by image_uri.

        Raises:
            OutputError: a file lacks rows that it had.
            StorageError: a file cannot be read.
        """
        files = list(self._files(chosen))
        tables = ("images", "detections")
        self._fetch([shard_file(table, file.run_id, file.shard_id) for table in tables for file in files])
        images, places = _in_order([self._part("images", file, IMAGES) for file in files], IMAGES)
        detections, owner = _in_order([self._part("detections", file, DETECTIONS) for file in files], DETECTIONS)
        expected = pc.sum(images.column("num_candidates")).as_py() or 0
        if not np.array_equal(places, np.arange(chosen.num_rows)) or expected != len(owner):
            where = self._output.child_uri(f"images/run_id={files[0].run_id}")
            raise OutputError(
                f"{where}: rows are missing or come twice near {chosen['image_uri'][0]}; `batchdet audit`"
            )
        uris = chosen.column("image_uri").take(pa.array(owner, pa.int64()))
        return Rows(images, detections.set_column(0, DETECTIONS.field("image_uri"), uris), owner)

    def _files(self, chosen: pa.RecordBatch) -> Iterator[_File]:
        """The files of the choice, one after the other."""
        runs, shards = (np.asarray(chosen.column(name), np.int64) for name in ("run", "shard_id"))
        key = (runs << 32) + shards
        order = key.argsort(kind="stable")
        cuts = np.flatnonzero(np.diff(key[order])) + 1
        for places in np.split(order, cuts) if len(order) else ():
            run_id, shard_id = self._run_ids[int(runs[places[0]])], int(shards[places[0]])
            yield _File(run_id, shard_id, places, chosen.column("image_uri").take(pa.array(places, pa.int64())))

    def _part(self, table: str, file: _File, schema: pa.Schema) -> tuple[pa.Table, IntArray]:
        """The file's rows of chosen images, image_uri as a dictionary, and each row's place in the choice."""
        name = shard_file(table, file.run_id, file.shard_id)
        low, high = file.uris[0].as_py(), file.uris[-1].as_py()
        tables, places = [schema.empty_table()], [np.zeros(0, np.int64)]
        with opened(self._stream(name), ["image_uri"] if table == "detections" else []) as source:
            check_schema_version(source.schema_arrow.metadata, self._output.child_uri(name))
            for group in _overlapping(source.metadata, low, high):
                read = read_rows(source, [name for name in schema.names if name in source.schema_arrow.names], group)
                place = _places(read.column("image_uri"), file)
                is_chosen = place >= 0
                kept = read if is_chosen.all() else read.filter(pa.array(is_chosen))
                tables.append(_conformed(kept, schema))
                places.append(place[is_chosen])
        return pa.concat_tables(tables), np.concatenate(places)

    def _fetch(self, names: Sequence[str]) -> None:
        """Hold the small files among these, and let go of those longest not used."""
        missing = [name for name in names if name not in self._held]
        with ThreadPoolExecutor(_THREADS) as threads:
            for name, data in zip(missing, threads.map(self._read_small, missing), strict=True):
                if data is not None:
                    self._held[name] = data
        for name in names:
            if name in self._held:
                self._held.move_to_end(name)
        wanted = set(names)
        while sum(map(len, self._held.values())) > CACHE_BYTES and next(iter(self._held)) not in wanted:
            self._held.popitem(last=False)

    def _read_small(self, name: str) -> bytes | None:
        with self._output.open_input(name) as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            return stream.read() if size <= WHOLE_BYTES else None

    def _stream(self, name: str) -> BinaryIO:
        return io.BytesIO(self._held[name]) if name in self._held else self._output.open_input(name)


def _overlapping(metadata: Any, low: str, high: str) -> Iterator[int]:
    """Row groups that may hold an image_uri from `low` to `high`."""
    column = next(
        number for number in range(metadata.num_columns) if metadata.schema.column(number).name == "image_uri"
    )
    for group in range(metadata.num_row_groups):
        stated = metadata.row_group(group).column(column).statistics
        is_known = stated is not None and stated.has_min_max
        if not is_known or (stated.min.encode() <= high.encode() and stated.max.encode() >= low.encode()):
            yield group


def _places(uris: Any, file: _File) -> IntArray:
    """Each row's place in the choice, -1 for rows of other images."""
    find = partial(pc.index_in, value_set=file.uris)
    found: list[IntArray] = [np.zeros(0, np.int64)]
    for chunk in uris.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            inner = _filled(find(chunk.dictionary))
            codes = np.asarray(chunk.indices, np.int64)
            inner = inner[codes] if len(inner) else np.full(len(codes), -1)
        else:
            inner = _filled(find(chunk))
        found.append(np.where(inner >= 0, file.places[inner], -1))
    return np.concatenate(found)


def _filled(found: Any) -> IntArray:
    return np.asarray(pc.fill_null(found, -1), np.int64)


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The schema's columns by name: those a file of an older version lacks are null; the dictionaries stay."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.chunked_array([pa.nulls(len(table), field.type)]))
        elif field.name == "image_uri" and pa.types.is_dictionary(table.column(field.name).type):
            # The gatherer knows the text by its place already.
            columns.append(pa.chunked_array([pa.nulls(len(table), field.type)]))
        else:
            columns.append(table.column(field.name).cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _in_order(parts: Sequence[tuple[pa.Table, IntArray]], schema: pa.Schema) -> tuple[pa.Table, IntArray]:
    """All rows by their place; rows of one image stay as they lay."""
    if not parts:
        return schema.empty_table(), np.zeros(0, np.int64)
    table = pa.concat_tables([table for table, _ in parts]).unify_dictionaries().combine_chunks()
    places = np.concatenate([places for _, places in parts])
    if np.all(places[1:] >= places[:-1]):
        return table, places
    order = places.argsort(kind="stable")
    return table.take(pa.array(order, pa.int64())), places[order]
