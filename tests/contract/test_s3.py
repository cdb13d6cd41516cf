"""Whole runs with source and output on S3, in good weather and in bad; the proxy counts what is asked for."""

from pathlib import Path

import pytest

from batchdet.cli.main import main
from batchdet.demo.shipped import shipped_model
from tests.contract.outputs import assert_same_rows, download, rows_of, text_of
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import Bucket

IMAGES_PER_SHARD = 4
NUM_IMAGES = 12
ATTEMPTS = 6
"""Tries of one read before it is a failed row."""

READ_TIMEOUT = "--set=storage.source.config_kwargs={read_timeout: 2}"


def arguments(bucket: Bucket, *settings: str, output: str = "labels") -> list[str]:
    flags = ["--source", f"{bucket.uri}/photos #1/", "--output", f"{bucket.uri}/{output}"]
    fixed = [f"--set=plan.images_per_shard={IMAGES_PER_SHARD}", "--set=reading.block_images=3"]
    return [*flags, "--model", str(shipped_model()), *fixed, *(f"--set={text}" for text in settings)]


def put_pictures(bucket: Bucket, pictures: Path) -> list[str]:
    """Some scenes under a prefix people really choose; their names."""
    paths = sorted(pictures.glob("scene-*"))[:NUM_IMAGES]
    bucket.put_all({f"photos #1/{path.name}": path.read_bytes() for path in paths})
    return [path.name for path in paths]


def fetched(bucket: Bucket, tmp_path: Path, output: str = "labels") -> Path:
    return download(bucket, f"{output}/", tmp_path / output)


def test_source_and_output_on_s3(bucket: Bucket, pictures: Path, tmp_path: Path) -> None:
    """Law 8 too: no secret of the environment is in anything written."""
    names = put_pictures(bucket, pictures)
    assert main(["label", "--ray", "off", *arguments(bucket)]) == 0
    assert main(["audit", f"{bucket.uri}/labels"]) == 0
    images = rows_of(fetched(bucket, tmp_path), "images")
    assert images["image_uri"].to_pylist() == [f"{bucket.uri}/photos #1/{name}" for name in names]
    listed = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix="photos #1/")["Contents"]
    assert images["etag"].to_pylist() == [entry["ETag"].strip('"') for entry in listed]
    assert images["size_bytes"].to_pylist() == [entry["Size"] for entry in listed]
    assert images["last_modified"].to_pylist() == [entry["LastModified"] for entry in listed]
    assert bucket.server.secret_key not in text_of(tmp_path / "labels")


def test_each_image_is_asked_for_once(
    faulty_bucket: Bucket, faults: FaultProxy, pictures: Path, tmp_path: Path
) -> None:
    """Listing asks by page, reading once an image; an unchanged image is not read again; a changed or failed one is."""
    names = put_pictures(faulty_bucket, pictures)
    faulty_bucket.put("photos #1/x-empty.jpg", b"")
    faults.clear()
    assert main(["plan", *arguments(faulty_bucket)]) == 0
    assert len(faults.requests) <= 6, faults.requests
    faults.clear()
    assert main(["label", "--ray", "off", *arguments(faulty_bucket, "limits.max_failure_rate=0.2")]) == 0
    assert [faults.count(name) for name in names] == [1] * NUM_IMAGES
    shards = -(-(NUM_IMAGES + 1) // IMAGES_PER_SHARD)
    assert faults.count("photos #1/") == NUM_IMAGES + 1, "a request beside the reads named an image"
    assert len(faults.requests) - NUM_IMAGES - 1 <= 40 + 9 * shards, "the run's own, lease and listings, and a shard's"
    faulty_bucket.put(f"photos #1/{names[3]}", faulty_bucket.get(f"photos #1/{names[4]}"))
    faulty_bucket.put("photos #1/new.jpg", faulty_bucket.get(f"photos #1/{names[5]}"))
    faults.clear()
    assert main(["label", "--ray", "off", *arguments(faulty_bucket, "limits.max_failure_rate=1")]) == 0
    read = {seen.key.removeprefix("photos #1/") for seen in faults.requests if seen.key.startswith("photos #1/")}
    assert read - {""} == {names[3], "new.jpg", "x-empty.jpg"}
    newest = max((seen.key for seen in faults.requests if seen.key.startswith("labels/runs/")), default="")
    (row,) = [row for row in rows_of(fetched(faulty_bucket, tmp_path), "runs").to_pylist() if row["run_id"] in newest]
    assert (row["num_listed"], row["num_unchanged"], row["num_labelled"], row["num_failed"]) == (14, 11, 2, 1)


PASSING = [
    ("status", {"status": 503, "code": "SlowDown"}, 2),
    ("status", {"status": 500, "code": "InternalError"}, 2),
    ("reset", {}, 2),
    ("reset_midway", {}, 2),
    ("truncate", {}, 2),
    ("hang", {}, 1),
]
LASTING = [
    ("status", {"status": 503, "code": "SlowDown"}, "transient", ATTEMPTS),
    ("reset", {}, "transient", ATTEMPTS),
    ("truncate", {}, "transient", ATTEMPTS),
    ("status", {"status": 403, "code": "AccessDenied"}, "access_denied", 1),
    ("status", {"status": 404, "code": "NoSuchKey"}, "not_found", 1),
]


def test_trouble_with_single_images(faulty_bucket: Bucket, faults: FaultProxy, pictures: Path, tmp_path: Path) -> None:
    """What passes is tried again and labelled as if nothing was; what lasts is one failed row, and the run goes on."""
    names = put_pictures(faulty_bucket, pictures)
    assert main(["label", "--ray", "off", *arguments(faulty_bucket, output="calm")]) == 0
    calm = {row["image_uri"]: row for row in rows_of(fetched(faulty_bucket, tmp_path, "calm"), "images").to_pylist()}
    faults.clear()
    passing, lasting = names[: len(PASSING)], names[len(PASSING) : len(PASSING) + len(LASTING)]
    for name, (kind, answer, times) in zip(passing, PASSING, strict=True):
        faults.add(Fault(name, kind, times=times, method="GET", **answer))  # type: ignore[arg-type]
    for name, (kind, answer, _, _) in zip(lasting, LASTING, strict=True):
        faults.add(Fault(name, kind, method="GET", **answer))  # type: ignore[arg-type]
    assert main(["label", "--ray", "off", *arguments(faulty_bucket, "limits.max_failure_rate=0.5"), READ_TIMEOUT]) == 0
    asked = [faults.count(name, "GET") for name in names]
    assert asked[: len(PASSING)] == [times + 1 for _, _, times in PASSING]
    for count, (kind, _, _, attempts) in zip(asked[len(PASSING) : -1], LASTING, strict=True):
        # aiohttp asks once more by itself where a connection it had used before was reset.
        assert count == attempts or (kind == "reset" and attempts < count <= 2 * attempts)
    assert asked[-1] == 1
    rows = rows_of(fetched(faulty_bucket, tmp_path), "images").to_pylist()
    failed = {row["image_uri"].rpartition("/")[2]: row for row in rows if row["status"] == "failed"}
    assert [(failed[name]["failure_stage"], failed[name]["failure_code"]) for name in lasting] == [
        ("read", code) for _, _, code, _ in LASTING
    ]
    assert all("\n" not in row["failure_reason"] for row in failed.values())
    assert [row for row in rows if row["status"] == "labelled"] == [
        calm[row["image_uri"]] for row in rows if row["status"] == "labelled"
    ]
    assert len(failed) == len(LASTING)
    assert main(["audit", f"{faulty_bucket.uri}/labels"]) == 0


def test_an_output_that_refuses_a_shard(
    faulty_bucket: Bucket,
    faults: FaultProxy,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The shard stays open and the run goes on; once the trouble is over, the same command labels only that shard."""
    names = put_pictures(faulty_bucket, pictures)
    assert main(["label", "--ray", "off", *arguments(faulty_bucket, output="calm")]) == 0
    faults.clear()
    fault = faults.add(Fault("shard-00001.parquet", "status", method="PUT"))
    capsys.readouterr()
    assert main(["label", "--ray", "off", *arguments(faulty_bucket)]) == 1
    assert fault.seen == 3 * ATTEMPTS, "limits.max_attempts_per_shard times, each with backoff"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: 1 of 3 shards are open; run " in captured.err
    assert captured.err.endswith("run the same command again to resume\n")
    assert main(["audit", f"{faulty_bucket.uri}/labels"]) != 0
    faults.clear()
    assert main(["label", "--ray", "off", *arguments(faulty_bucket)]) == 0
    assert [faults.count(name) for name in names] == [0] * 4 + [1] * 4 + [0] * 4
    assert main(["audit", f"{faulty_bucket.uri}/labels"]) == 0
    assert_same_rows(fetched(faulty_bucket, tmp_path), fetched(faulty_bucket, tmp_path, "calm"))


@pytest.mark.parametrize("kind", ["status", "reset"])
def test_an_output_in_passing_trouble(
    kind: str, faulty_bucket: Bucket, faults: FaultProxy, pictures: Path, tmp_path: Path
) -> None:
    put_pictures(faulty_bucket, pictures)
    for key in ("plan.json", "shard-00000.parquet", "runs/"):
        faults.add(Fault(key, kind, times=2, method="PUT"))  # type: ignore[arg-type]
    assert main(["label", "--ray", "off", *arguments(faulty_bucket)]) == 0
    assert main(["audit", f"{faulty_bucket.uri}/labels"]) == 0
