"""Sources become listed images: folders, globs and single files, on disk, in memory and on S3."""

import os
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from batchdet.config import EXTENSIONS
from batchdet.errors import SourceError
from batchdet.storage.listing import list_images
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import Bucket, S3Server
from tests.storage.made import listed

ODD_NAMES = [
    "plain.jpg",
    "UPPER.JPG",
    "with space.jpg",
    "hash#1.png",
    "percent%20.jpg",
    "plus+sign.jpg",
    "question?.jpg",
    "brackets[1].jpg",
    "ünïcödé/写真.webp",
    "deep/er/and/deeper.tif",
    "dots..jpg",
    "'quoted\".jpg",
    "a=b&c=d.jpg",
    "empty.jpg",
]
OTHER_NAMES = ["notes.txt", "jpg", "a.jpg.part", "runs/20260517T120000Z-00000001.parquet", "images/x.json"]


def content(name: str) -> bytes:
    return b"" if name == "empty.jpg" else name.encode()


def fill_local(root: Path) -> None:
    for name in ODD_NAMES + OTHER_NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content(name))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_local_folder(tmp_path: Path, scheme: str) -> None:
    fill_local(tmp_path)
    before = datetime.now(UTC)
    found = listed(f"{scheme}{tmp_path}/")
    assert set(found) == {f"file://{tmp_path}/{name}" for name in ODD_NAMES}
    for name in ODD_NAMES:
        ref = found[f"file://{tmp_path}/{name}"]
        changed = (tmp_path / name).stat().st_mtime
        assert (ref.etag, ref.size_bytes) == (None, len(content(name)))
        assert ref.last_modified is not None
        assert abs(ref.last_modified.timestamp() - changed) < 1e-5
        assert ref.last_modified <= before


def test_memory_folder() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/listing/{name}": content(name) for name in ODD_NAMES + OTHER_NAMES})
    found = listed("memory://listing/")
    assert set(found) == {f"memory:///listing/{name}" for name in ODD_NAMES}
    assert found["memory:///listing/plain.jpg"].size_bytes == 9
    assert listed("memory://listing/deep/er/*/*.tif").keys() == {"memory:///listing/deep/er/and/deeper.tif"}
    with pytest.raises(SourceError, match="not found"):
        listed("memory://listing/nowhere")


def test_s3_prefix(bucket: Bucket) -> None:
    bucket.put_all({f"p/{name}": content(name) for name in ODD_NAMES + OTHER_NAMES})
    bucket.put_all({"p/": b"", "p/folder.jpg/": b"", "p2/other.jpg": b"x", "q.jpg": b"x"})
    found = listed(f"{bucket.uri}/p/")
    assert set(found) == {f"{bucket.uri}/p/{name}" for name in ODD_NAMES}
    for entry in bucket.client.list_objects_v2(Bucket=bucket.name, Prefix="p/")["Contents"]:
        if ref := found.get(f"{bucket.uri}/{entry['Key']}"):
            assert ref.etag == entry["ETag"].strip('"')
            assert ref.size_bytes == entry["Size"]
            assert ref.last_modified == entry["LastModified"]
    assert set(listed(f"{bucket.uri}/p")) == set(found), "the slash at the end may be left out"
    assert len(listed(bucket.uri)) == len(ODD_NAMES) + 2


def test_s3_glob_and_single_file(moto_bucket: Bucket) -> None:
    uri = moto_bucket.uri
    moto_bucket.put_all({f"p/2026-{month:02d}/{n}.JPG": b"x" for month in (4, 5, 10) for n in range(3)})
    moto_bucket.put_all({"p/2026-05/0.JPG.bak/x.jpg": b"x", "p/readme.txt": b"x"})
    assert len(listed(f"{uri}/p/2026-0*/*.jpg")) == 6
    assert len(listed(f"{uri}/p/**")) == 10
    assert set(listed(f"{uri}/p/2026-{{04,10}}/[01].jpg")) == {
        f"{uri}/p/2026-{month}/{n}.JPG" for month in ("04", "10") for n in (0, 1)
    }
    assert set(listed(f"{uri}/p/2026-05/0.JPG")) == {f"{uri}/p/2026-05/0.JPG"}, "not the keys it is a prefix of"


def test_no_request_per_key(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    faulty_bucket.put_all({f"p/{n % 3}/{n}.jpg": b"x" for n in range(60)})
    faults.requests.clear()
    assert len(listed(f"{faulty_bucket.uri}/p/")) == 60
    assert len(faults.requests) <= 1 + 8, "one look at the folders, one page per range"


def test_listing_outlives_a_busy_server(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    faulty_bucket.put_all({f"p/{n}.jpg": b"x" for n in range(5)})
    faults.add(Fault("", "status", times=2, method="GET"))
    assert len(listed(f"{faulty_bucket.uri}/p/")) == 5


def test_progress_counts_every_key_seen(tmp_path: Path) -> None:
    fill_local(tmp_path)
    seen: list[int] = []
    for _ in list_images(str(tmp_path), {}, EXTENSIONS, seen.append):
        pass
    assert seen == sorted(seen)
    assert seen[-1] == len(ODD_NAMES + OTHER_NAMES)


def test_links(tmp_path: Path) -> None:
    photos, links = tmp_path / "photos", tmp_path / "links"
    photos.mkdir()
    links.mkdir()
    (photos / "a.jpg").write_bytes(b"abc")
    (links / "file.jpg").symlink_to(photos / "a.jpg")
    (links / "folder").symlink_to(photos)
    (links / "loop").symlink_to(links)
    (links / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (links / "itself.jpg").symlink_to(links / "itself.jpg")
    found = {uri.rsplit("/links/")[-1]: ref.size_bytes for uri, ref in listed(str(links)).items()}
    assert found == {"file.jpg": 3, "folder/a.jpg": 3, "gone.jpg": None, "itself.jpg": None}


def test_a_file_that_goes_while_its_folder_is_read_is_not_listed(tmp_path: Path) -> None:
    for number in range(10_050):
        (tmp_path / f"{number}.jpg").touch()
    batches = list_images(str(tmp_path), {}, ["jpg"])
    first = next(batches)
    names = {uri.as_py().rsplit("/")[-1] for uri in first.column("image_uri")}
    for path in tmp_path.iterdir():
        if path.name not in names:
            path.unlink()
    assert first.num_rows == 10_000
    assert sum(batch.num_rows for batch in batches) == 0


def test_large_folder_comes_in_bounded_batches(tmp_path: Path) -> None:
    for number in range(10_050):
        (tmp_path / f"{number}.jpg").touch()
    sizes = [batch.num_rows for batch in list_images(str(tmp_path), {}, ["jpg"])]
    assert sum(sizes) == 10_050
    assert max(sizes) == 10_000


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    for name in (b"caf\xe9.jpg", b"caf\xea.jpg", b"back\\slash.jpg", b"both\\x\xff.jpg", "café.jpg".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    found = listed(str(tmp_path))
    assert {uri.removeprefix(f"file://{tmp_path}/") for uri in found} == {
        r"caf\xe9.jpg",
        r"caf\xea.jpg",
        r"back\slash.jpg",
        r"both\x5cx\xff.jpg",
        "café.jpg",
    }
    assert set(listed(f"{tmp_path}/caf*.jpg")) < set(found)


OUTPUT_FILES = [
    "runs/20260517T120000Z-00000001.parquet",
    "images/run_id=20260517T120000Z-00000001/shard-00000.parquet",
    "detections/run_id=20260517T120000Z-00000001/shard-00000.parquet",
    "detections/run_id=20260517T120000Z-00000001/.0123456789abcdef0123456789abcdef.tmp",
    "_plans/20260517T120000Z-00000001/plan.json",
    "_plans/20260517T120000Z-00000001/manifest-00000.parquet",
    ".batchdet-probe",
]
USER_FILES = [
    "a.jpg",
    "images/cat.jpg",
    "images/run_id=mine/b.jpg",
    "runs/c.jpg",
    "_plans/house.jpg",
    "x/runs/d.parquet",
]


def count_listed(source: str, skip: str | None) -> tuple[set[str], int]:
    """What is listed of any of the endings below, and how many keys were counted."""
    seen = [0]
    endings = ["jpg", "parquet", "json", "tmp"]
    batches = list(list_images(source, {}, endings, seen.append, skip))
    return {row["image_uri"] for batch in batches for row in batch.to_pylist()}, seen[-1]


@pytest.mark.parametrize("pattern", ["", "**"])
@pytest.mark.parametrize("inner", ["", "labels/"])
def test_an_output_inside_the_source_is_no_part_of_it(
    tmp_path: Path, moto_bucket: Bucket, inner: str, pattern: str
) -> None:
    names = [f"{inner}{name}" for name in OUTPUT_FILES + USER_FILES]
    moto_bucket.put_all(dict.fromkeys(names, b"x"))
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for root, given in ((moto_bucket.uri, f"{moto_bucket.uri}/"), (f"file://{tmp_path}", str(tmp_path))):
        wanted = {f"{root}/{inner}{name}" for name in USER_FILES}
        assert count_listed(f"{root}/{pattern}", f"{given.rstrip('/')}/{inner}") == (wanted, len(USER_FILES))
        assert count_listed(f"{root}/{pattern}", f"{root}/other")[1] == len(names)
        assert count_listed(f"{root}/{pattern}", "memory://labels")[1] == len(names)


def test_unreadable_sources(tmp_path: Path, moto_bucket: Bucket) -> None:
    (tmp_path / "notes.txt.d").mkdir()
    moto_bucket.put("other/a.jpg", b"x")
    cases = {
        str(tmp_path): "holds no images; extensions looked for: jpg, jpeg",
        f"{tmp_path}/nowhere": "not found",
        f"{tmp_path}/nowhere/*.jpg": "not found",
        f"{moto_bucket.uri}/nothing/": "holds no images",
        f"{moto_bucket.uri}/other/*.png": "holds no images",
        "s3://no-such-bucket-here/p/": "no such bucket",
        "s3://test-*/p/*.jpg": "a bucket's name cannot be a pattern",
        f"{tmp_path}/{{a.jpg": "not found",
        f"{tmp_path}/{{a,b*.jpg": "a { is not closed",
        "nosuchscheme://x/": "nosuchscheme",
    }
    for source, reason in cases.items():
        with pytest.raises(SourceError, match=reason) as caught:
            listed(source)
        assert source in str(caught.value), "the message names the source"
        assert "\n" not in str(caught.value)


def test_no_credentials(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.endpoint)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(SourceError, match=r"source s3://photos/p/: .*credentials"):
        listed("s3://photos/p/")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
