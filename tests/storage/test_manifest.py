"""Manifests of every kind give the same images; what is not a manifest gets one line."""

import csv
import gzip
import io
import json
import urllib.parse
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchdet.errors import SourceError
from batchdet.records import ImageRef
from batchdet.storage.listing import list_images
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import Bucket
from tests.storage.made import listed

WHEN = datetime(2026, 5, 17, 12, 30, 15, tzinfo=UTC)
ROWS: list[dict[str, Any]] = [
    {"image_uri": "s3://b/p/plain.jpg", "etag": "e1", "size_bytes": 10, "last_modified": WHEN},
    {"image_uri": "s3://b/p/with space #1 %20 ?.JPG", "etag": "e2", "size_bytes": 20, "last_modified": WHEN},
    {"image_uri": "gs://b/ünïcödé, 写真.png", "etag": None, "size_bytes": None, "last_modified": None},
    {"image_uri": "s3://b/no-extension", "etag": "e4", "size_bytes": 0, "last_modified": WHEN},
]
EXPECTED = {row["image_uri"]: ImageRef(*row.values()) for row in ROWS}


def as_parquet() -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(ROWS).append_column("note", pa.array([None, {"a": 1}, None, None]))
    pq.write_table(table.cast(table.schema.set(0, pa.field("image_uri", pa.large_string()))), sink)
    return sink.getvalue()


def as_csv() -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["note", *reversed(ROWS[0])], lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(row | {"last_modified": row["last_modified"] and row["last_modified"].isoformat()} for row in ROWS)
    return text.getvalue().encode()


def as_jsonl() -> bytes:
    rows = [row | {"last_modified": row["last_modified"] and WHEN.isoformat(), "note": [1]} for row in ROWS]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_text() -> bytes:
    return "\r\n\n".join(row["image_uri"] for row in ROWS).encode()


KINDS: dict[str, Callable[[], bytes]] = {
    "m.parquet": as_parquet,
    "m.csv": as_csv,
    "M.CSV": as_csv,
    "m.csv.gz": lambda: gzip.compress(as_csv()),
    "m.jsonl": as_jsonl,
    "m.ndjson": as_jsonl,
    "m.jsonl.gz": lambda: gzip.compress(as_jsonl()),
}


@pytest.mark.parametrize("name", KINDS)
def test_tables(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(KINDS[name]())
    assert listed(str(tmp_path / name)) == EXPECTED, "taken as it is, whatever the extensions"


@pytest.mark.parametrize("name", ["m.txt", "m.txt.gz"])
def test_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(as_text() if name == "m.txt" else gzip.compress(b"\xef\xbb\xbf" + as_text()))
    assert listed(str(tmp_path / name)) == {uri: ImageRef(uri) for uri in EXPECTED}


def test_on_s3_and_in_memory(moto_bucket: Bucket) -> None:
    for name, make in KINDS.items():
        moto_bucket.put(f"lists/{name}", make())
        assert listed(f"{moto_bucket.uri}/lists/{name}") == EXPECTED
    fsspec.filesystem("memory").pipe("/lists/m.parquet", as_parquet())
    assert listed("memory://lists/m.parquet") == EXPECTED


def test_outlives_a_fault(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    faulty_bucket.put("m.parquet", as_parquet())
    faults.add(Fault("m.parquet", "status", times=1, method="GET"))
    assert listed(f"{faulty_bucket.uri}/m.parquet") == EXPECTED


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a.jpg", "file://{folder}/a.jpg"),
        ("./sub/a b.jpg", "file://{folder}/sub/a b.jpg"),
        ("sub/../a%20.jpg", "file://{folder}/a%20.jpg"),
        ("/data/x//a.jpg", "file:///data/x/a.jpg"),
        ("file:///data/a.jpg", "file:///data/a.jpg"),
        ("s3a://b/a.jpg", "s3://b/a.jpg"),
        ("S3://b/a.jpg", "s3://b/a.jpg"),
        ("gcs://b/a.jpg", "gs://b/a.jpg"),
        ("memory://b/a.jpg", "memory:///b/a.jpg"),
        ("s3://b//odd//a.jpg", "s3://b//odd//a.jpg"),
        ("s3://b/trailing .jpg ", "s3://b/trailing .jpg "),
        ("https://host/a%20b.jpg?x=1", "https://host/a%20b.jpg?x=1"),
    ],
)
def test_spelling_of_uris(tmp_path: Path, written: str, expected: str) -> None:
    (tmp_path / "m.txt").write_text(written + "\n")
    assert set(listed(str(tmp_path / "m.txt"))) == {expected.format(folder=tmp_path)}


def test_beside_a_manifest_on_s3(moto_bucket: Bucket) -> None:
    moto_bucket.put("lists/m.txt", b"a.jpg\n../b.jpg\n")
    assert set(listed(f"{moto_bucket.uri}/lists/m.txt")) == {
        f"{moto_bucket.uri}/lists/a.jpg",
        f"{moto_bucket.uri}/lists/../b.jpg",
    }, "on S3 two dots are two dots"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-05-17T12:30:15Z", WHEN),
        ("2026-05-17 12:30:15", WHEN),
        ("2026-05-17T14:30:15+02:00", WHEN),
        ("2026-05-17T12:30:15.250Z", WHEN + timedelta(milliseconds=250)),
        ("2026-05-17", datetime(2026, 5, 17, tzinfo=UTC)),
        ("", None),
    ],
)
def test_times_in_csv(tmp_path: Path, written: str, expected: datetime | None) -> None:
    (tmp_path / "m.csv").write_text(f'image_uri,last_modified,etag\ns3://b/a.jpg,{written},"""quoted"""\n')
    (ref,) = listed(str(tmp_path / "m.csv")).values()
    assert ref == ImageRef("s3://b/a.jpg", "quoted", None, expected)


@pytest.mark.parametrize(
    "type_", [pa.timestamp("s"), pa.timestamp("ns", "Europe/Rome"), pa.timestamp("ms", "UTC"), pa.timestamp("ns")]
)
def test_times_in_parquet(tmp_path: Path, type_: pa.TimestampType) -> None:
    local = WHEN.astimezone(timezone(timedelta(hours=2))) if type_.tz else WHEN.replace(tzinfo=None)
    table = pa.table({"image_uri": ["s3://b/a.jpg"], "last_modified": pa.array([local], type_)})
    pq.write_table(table, tmp_path / "m.parquet")
    (ref,) = listed(str(tmp_path / "m.parquet")).values()
    assert ref.last_modified == WHEN


REFUSED = {
    "no.csv": (b"uri,width\ns3://b/a.jpg,3\n", "no column image_uri; found: uri, width"),
    "no.jsonl": (b'{"url": "s3://b/a.jpg", "n": 1}\n', "no column image_uri; found: url, n"),
    "gap.csv": (b"image_uri,etag\ns3://b/a.jpg,1\n,2\n", "a row has no image_uri"),
    "size.csv": (b"image_uri,size_bytes\ns3://b/a.jpg,large\n", "large"),
    "time.csv": (b"image_uri,last_modified\ns3://b/a.jpg,yesterday\n", "yesterday"),
    "ragged.csv": (b"image_uri,etag\ns3://b/a.jpg,1,2\n", "Expected 2 columns, got 3"),
    "empty.csv": (b"", "Empty CSV file"),
    "header.csv": (b"image_uri\n", "holds no images"),
    "broken.jsonl": (b'{"image_uri": "s3://b/a.jpg"\n', "JSON parse error"),
    "text.parquet": (b"image_uri", "Parquet"),
    "latin.txt": ("s3://b/caf\xe9.jpg".encode("latin-1"), "utf-8"),
    "cut.txt.gz": (gzip.compress(b"s3://b/a.jpg\n" * 100)[:-9], "ended before|end-of-stream"),
    "not.txt.gz": (b"s3://b/a.jpg\n", "[Nn]ot a gzipped file"),
    "signed.txt": (
        b"https://b.s3.amazonaws.com/a.jpg?X-Amz-Signature=S3CRET\n",
        "of https://b.s3.amazonaws.com/a.jpg holds",
    ),
    "user.txt": (b"s3://b/a.jpg\nhttps://me:S3CRET@h/a.jpg\n", "of h/a.jpg holds a secret"),
    "manifest.json": (b"{}", "not the manifest of an S3 Inventory"),
    "list/manifest.json": (b"[1", "not the manifest of an S3 Inventory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(tmp_path: Path, name: str) -> None:
    data, reason = REFUSED[name]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=reason) as caught:
        listed(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert "S3CRET" not in str(caught.value)
    assert name in str(caught.value)


def test_parquet_without_the_column_and_missing_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["x"], "n": [1]}), tmp_path / "m.parquet")
    with pytest.raises(SourceError, match="no column image_uri; found: path, n"):
        listed(str(tmp_path / "m.parquet"))
    with pytest.raises(SourceError, match="not found"):
        listed(str(tmp_path / "nowhere.csv"))


def test_duplicates_pass_through_in_bounded_batches(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("s3://b/a.jpg\n" * 25_000)
    seen: list[int] = []
    sizes = [batch.num_rows for batch in list_images(str(tmp_path / "m.txt"), {}, [], seen.append)]
    assert sum(sizes) == seen[-1] == 25_000
    assert max(sizes) <= 10_000


SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"
KEYS = ["2026/a b+c%20#é.JPG", "2026/写真.png", "notes.txt", "raw/x.jpg"]


def inventory(bucket: Bucket, kind: str, files: dict[str, bytes]) -> str:
    bucket.put_all(files)
    manifest = {
        "sourceBucket": "photos",
        "destinationBucket": f"arn:aws:s3:::{bucket.name}",
        "fileFormat": kind,
        "fileSchema": SCHEMA,
        "files": [{"key": key, "size": len(data), "MD5checksum": "-"} for key, data in files.items()],
    }
    bucket.put("inv/2026-05-17T00-00Z/manifest.json", json.dumps(manifest).encode())
    return f"{bucket.uri}/inv/2026-05-17T00-00Z/manifest.json"


def test_inventory_as_csv(moto_bucket: Bucket) -> None:
    def rows(keys: list[str], *more: str) -> bytes:
        quoted = [urllib.parse.quote_plus(key, safe="/") for key in keys]
        lines = [f'"photos","{key}","","true","false","7","2026-05-17T12:30:15.000Z","abc"' for key in quoted]
        return gzip.compress("\n".join([*lines, *more, ""]).encode())

    old = '"photos","old.jpg","v1","false","false","7","2026-05-17T12:30:15.000Z","abc"'
    gone = '"photos","gone.jpg","v2","true","true","","2026-05-17T12:30:15.000Z",""'
    files = {"inv/data/1.csv.gz": rows(KEYS[:2]), "inv/data/2.csv.gz": rows(KEYS[2:], old, gone)}
    found = listed(inventory(moto_bucket, "CSV", files))
    assert set(found) == {f"s3://photos/{key}" for key in KEYS if key != "notes.txt"}
    assert set(found.values()) == {ImageRef(uri, "abc", 7, WHEN) for uri in found}


def test_inventory_as_parquet(moto_bucket: Bucket) -> None:
    count = len(KEYS)
    table = pa.table(
        {
            "bucket": ["photos"] * count,
            "key": KEYS,
            "is_latest": [True, True, True, False],
            "is_delete_marker": [False] * count,
            "size": pa.array([7] * count, pa.int64()),
            "last_modified_date": pa.array([WHEN] * count, pa.timestamp("ms")),
            "e_tag": ["abc"] * count,
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    found = listed(inventory(moto_bucket, "Parquet", {"inv/data/1.parquet": sink.getvalue()}))
    assert found == {uri: ImageRef(uri, "abc", 7, WHEN) for uri in (f"s3://photos/{key}" for key in KEYS[:2])}


def test_inventory_that_cannot_be_read(moto_bucket: Bucket) -> None:
    with pytest.raises(SourceError, match="ORC is not read; order CSV or Parquet"):
        listed(inventory(moto_bucket, "ORC", {}))
    uri = inventory(moto_bucket, "CSV", {"inv/data/1.csv.gz": gzip.compress(b'"photos"\n')})
    with pytest.raises(SourceError, match=r"1\.csv\.gz"):
        listed(uri)
    moto_bucket.client.delete_object(Bucket=moto_bucket.name, Key="inv/data/1.csv.gz")
    with pytest.raises(SourceError, match="not found"):
        listed(uri)
