"""A shard's two files, written part by part. Knows no place to put them."""

import pyarrow as pa
import pyarrow.parquet as pq

from batchdet.storage.schema import (
    DETECTIONS,
    DETECTIONS_ENCODING,
    IMAGES,
    IMAGES_ENCODING,
    ROW_GROUP_ROWS,
    Encoding,
    FileStamp,
    writer_options,
)


class TableWriter:
    """One Parquet file in memory, grown by tables whose rows follow one another; only its encoded bytes are held."""

    def __init__(self, schema: pa.Schema, encoding: Encoding, stamp: FileStamp) -> None:
        self._schema = schema = schema.with_metadata(stamp.metadata())
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._sink, schema, **writer_options(schema, encoding))

    def add(self, table: pa.Table) -> None:
        """Append rows of the schema."""
        self._writer.write_table(table.cast(self._schema), row_group_size=ROW_GROUP_ROWS)

    def finish(self) -> bytes:
        """The whole file."""
        self._writer.close()
        return self._sink.getvalue().to_pybytes()


class ShardWriter:
    """Both tables of one shard."""

    def __init__(self, stamp: FileStamp) -> None:
        self._images = TableWriter(IMAGES, IMAGES_ENCODING, stamp)
        self._detections = TableWriter(DETECTIONS, DETECTIONS_ENCODING, stamp)

    def add(self, images: pa.Table, detections: pa.Table) -> None:
        """Append images, and the detections of them all."""
        self._images.add(images)
        self._detections.add(detections)

    def finish(self) -> tuple[bytes, bytes]:
        """The files of detections and images, in the order they are to be written in."""
        return self._detections.finish(), self._images.finish()
