"""The public contract of the tables, pinned; other programs are written against it."""

import dataclasses
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchdet.errors import OutputError, SchemaVersionError
from batchdet.records import RunRow
from batchdet.storage.schema import (
    ADDED_COLUMNS,
    DETECTIONS,
    DETECTIONS_ENCODING,
    IMAGES,
    IMAGES_ENCODING,
    KNOWN,
    LISTING,
    RUNS,
    RUNS_ENCODING,
    SCHEMA_VERSION,
    SHARD_DETECTIONS,
    Encoding,
    FileStamp,
    check_schema_version,
    completed,
    encode_table,
)

STAMP = FileStamp("20260517T120000Z-00000001", "sha256:model", "sha256:policy")

CONTRACT = {
    "images": (
        IMAGES,
        """image_uri: string, etag: string, size_bytes: int64, last_modified: timestamp[us, tz=UTC], width: int32,
        height: int32, exif_orientation: int8, status: string, failure_stage: string, failure_code: string,
        failure_reason: string, num_detections: int32, num_candidates: int32, hit_detection_cap: bool,
        content_digest: string, decoder: string, shard_id: int32, labelled_at: timestamp[us, tz=UTC],
        copied_from: string, failed_runs: int32""",
    ),
    "detections": (
        DETECTIONS,
        """image_uri: string, detection_index: int32, label: int32,
        category: dictionary<values=string, indices=int32, ordered=0>, score: float, xmin: float, ymin: float,
        xmax: float, ymax: float, image_width: int32, image_height: int32, accepted: bool, shard_id: int32""",
    ),
    "runs": (
        RUNS,
        """run_id: string, status: string, started_at: timestamp[us, tz=UTC], finished_at: timestamp[us, tz=UTC],
        source: string, previous_run_id: string, model: string, architecture: string, model_digest: string,
        categories: list<item: string>, policy: string, policy_digest: string, config: string, num_listed: int64,
        num_labelled: int64, num_empty: int64, num_failed: int64, num_unchanged: int64, num_deleted: int64,
        num_detections: int64, images_per_second: double, versions: string""",
    ),
}


@pytest.mark.parametrize("table", CONTRACT)
def test_contract(table: str) -> None:
    schema, contract = CONTRACT[table]
    assert ", ".join(f"{field.name}: {field.type}" for field in schema) == " ".join(contract.split())
    assert SCHEMA_VERSION == 1


def test_run_row_is_the_runs_table() -> None:
    assert [field.name for field in dataclasses.fields(RunRow)] == RUNS.names


def test_listing_is_what_images_begin_with() -> None:
    assert list(IMAGES)[:4] == list(LISTING) == list(KNOWN)[:4]


@pytest.mark.parametrize(
    ("schema", "encoding"), [(IMAGES, IMAGES_ENCODING), (DETECTIONS, DETECTIONS_ENCODING), (RUNS, RUNS_ENCODING)]
)
def test_encoding(schema: pa.Schema, encoding: Encoding) -> None:
    table = schema.empty_table()
    data = encode_table(pa.concat_tables([table, one_row(schema)]), encoding, STAMP)
    metadata = pq.read_metadata(io.BytesIO(data))
    group = metadata.row_group(0)
    columns = {group.column(n).path_in_schema.split(".")[0]: group.column(n) for n in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    used = {name for name, column in columns.items() if column.has_dictionary_page}
    assert used == set(encoding.dictionary)
    encodings = {encoding for column in columns.values() for encoding in column.encodings}
    assert encodings <= {"PLAIN", "RLE", "RLE_DICTIONARY", "PLAIN_DICTIONARY"}, "what every reader knows"
    assert [schema.names[column.column_index] for column in group.sorting_columns] == list(encoding.sorted_by)
    assert {
        key: metadata.metadata[key] for key in metadata.metadata if key.startswith(b"batchdet.")
    } == {
        b"batchdet.schema_version": b"1",
        b"batchdet.run_id": STAMP.run_id.encode(),
        b"batchdet.model_digest": b"sha256:model",
        b"batchdet.policy_digest": b"sha256:policy",
    }  # fmt: skip


def test_equal_tables_give_equal_bytes() -> None:
    tables = [one_row(DETECTIONS), pa.concat_tables([DETECTIONS.empty_table(), one_row(DETECTIONS)])]
    first, second = (encode_table(table.combine_chunks(), DETECTIONS_ENCODING, STAMP) for table in tables)
    assert first == second


def test_a_shards_dictionary_of_uris_is_a_column_of_strings_in_its_file() -> None:
    table = pa.concat_tables([one_row(DETECTIONS)] * 3).combine_chunks()
    found = [
        encode_table(made, DETECTIONS_ENCODING, STAMP)
        for made in (table, table.set_column(0, SHARD_DETECTIONS.field(0), table["image_uri"].dictionary_encode()))
    ]
    for data in found:
        read = pq.read_table(io.BytesIO(data))
        assert read.schema.equals(DETECTIONS)
        assert read.schema.metadata == STAMP.metadata()
        assert read.equals(table)


def test_row_groups_are_bounded() -> None:
    table = pa.concat_tables([one_row(DETECTIONS)] * 4).combine_chunks().take(pa.array([0] * 150_000))
    metadata = pq.read_metadata(io.BytesIO(encode_table(table, DETECTIONS_ENCODING, STAMP)))
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [131_072, 18_928]


@pytest.mark.parametrize(
    ("metadata", "error", "reason"),
    [
        ({b"batchdet.schema_version": b"2"}, SchemaVersionError, "schema version 2, this batchdet writes 1"),
        ({b"batchdet.schema_version": b"0"}, SchemaVersionError, "schema version 0, this batchdet writes 1"),
        ({b"pandas": b"{}"}, OutputError, "choose another output folder"),
        (None, OutputError, "choose another output folder"),
    ],
)
def test_foreign_files_are_refused(metadata: dict[bytes, bytes] | None, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason) as caught:
        check_schema_version(metadata, "s3://labels/photos/runs/x.parquet")
    assert type(caught.value) is error
    assert "s3://labels/photos/runs/x.parquet" in str(caught.value)


def test_own_files_are_taken() -> None:
    check_schema_version(STAMP.metadata(), "s3://labels")


GROWN = pa.schema([*IMAGES, pa.field("made", pa.string()), pa.field("counted", pa.int32())])


@pytest.mark.parametrize(
    ("found", "wanted", "want"),
    [
        (IMAGES.names, GROWN.names, GROWN.names),
        ([*IMAGES.names, "counted"], GROWN.names, GROWN.names),
        ([*IMAGES.names, "later"], GROWN.names, [*GROWN.names, "later"]),
        (["etag", "status"], ["status", "etag", "made"], ["status", "etag", "made"]),
        (["status"], ["status", "etag", "made"], ["status", "made"]),
    ],
    ids=["an older file", "a file between", "a newer file", "some columns", "a damaged file"],
)
def test_only_added_columns_are_completed(found: list[str], wanted: list[str], want: list[str]) -> None:
    file = pa.schema([*GROWN, pa.field("later", pa.string())])
    table = one_row(pa.schema([file.field(name) for name in found])).replace_schema_metadata({b"who": b"me"})
    whole = completed(table, pa.schema([GROWN.field(name) for name in wanted]), frozenset({"made", "counted"}))
    assert whole.column_names == want
    assert whole.schema.metadata == {b"who": b"me"}
    for name in want:
        assert whole.schema.field(name).type == file.field(name).type
        assert whole[name].to_pylist() == (table[name].to_pylist() if name in found else [None])


def test_added_columns_come_last_and_are_nullable() -> None:
    for schema in (IMAGES, DETECTIONS, RUNS):
        added = [name in ADDED_COLUMNS for name in schema.names]
        assert added == sorted(added)
        assert all(schema.field(name).nullable for name in schema.names)
    assert not ADDED_COLUMNS & set(LISTING.names)


def one_row(schema: pa.Schema) -> pa.Table:
    values = {"string": "x", "bool": True, "float": 0.5, "double": 0.5, "list<item: string>": ["x"]}
    columns = [[values.get(str(field.type), "x" if pa.types.is_dictionary(field.type) else 1)] for field in schema]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
