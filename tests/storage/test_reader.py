"""One outcome per reference, in order, whatever happens to any of them; one request per object."""

import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchdet.records import EncodedImage, FailedImage, ImageRef
from batchdet.storage.filesystem import open_store
from batchdet.storage.reader import BlockReader
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import Bucket, S3Server
from tests.storage.made import listed
from tests.storage.stores import IMPATIENT, NASTY_NAMES, SHORT_TIMEOUTS


def _refs(folder: str, names: Any) -> list[ImageRef]:
    return [ImageRef(f"{folder}/{name}") for name in names]


def _bytes(outcomes: list[EncodedImage | FailedImage]) -> list[bytes | str]:
    return [outcome.data if isinstance(outcome, EncodedImage) else outcome.code for outcome in outcomes]


class TestPlaces:
    def test_nasty_keys_on_s3(self, bucket: Bucket) -> None:
        bucket.put_all({f"in/{name}": name.encode() for name in NASTY_NAMES})
        refs = _refs(f"{bucket.uri}/in", NASTY_NAMES)
        outcomes = BlockReader({}).fetch(refs)
        assert _bytes(outcomes) == [name.encode() for name in NASTY_NAMES]
        assert [outcome.ref for outcome in outcomes] == refs

    @pytest.mark.parametrize("scheme", ["file", "memory"])
    def test_nasty_names_elsewhere(self, tmp_path: Path, scheme: str) -> None:
        store = open_store(f"{scheme}://{tmp_path}", {})
        for name in NASTY_NAMES:
            store.write_bytes(name, name.encode())
        outcomes = BlockReader({}).fetch([ImageRef(store.child_uri(name)) for name in NASTY_NAMES])
        assert _bytes(outcomes) == [name.encode() for name in NASTY_NAMES]

    @pytest.mark.parametrize("stated", [None, 3, 4])
    def test_an_image_over_the_limit_is_refused_whatever_the_listing_says(self, tmp_path: Path, stated: int) -> None:
        (tmp_path / "a.jpg").write_bytes(b"1234")
        (tmp_path / "b.jpg").write_bytes(b"123")
        refs = [ImageRef(f"file://{tmp_path}/a.jpg", size_bytes=stated), ImageRef(f"file://{tmp_path}/b.jpg")]
        assert _bytes(BlockReader({}, max_bytes=3).fetch(refs)) == ["too_many_bytes", b"123"]

    def test_keys_only_an_object_store_has(self, bucket: Bucket) -> None:
        keys = [
            "a//b.jpg",
            "a/../b.jpg",
            "./a.jpg",
            "a/",
            "/a.jpg",
            "a",
            "..a",
            "a/..b",
            "%2e%2e/a.jpg",
            "a/%2Fb",
            "t\tab",
        ]
        bucket.put_all({key: key.encode() for key in keys})
        assert _bytes(BlockReader({}).fetch(_refs(bucket.uri, keys))) == [key.encode() for key in keys]

    def test_sources_mix_in_one_block(self, tmp_path: Path, moto_bucket: Bucket) -> None:
        (tmp_path / "b.jpg").write_bytes(b"local")
        open_store("memory://mixed", {}).write_bytes("c.jpg", b"memory")
        moto_bucket.put("a.jpg", b"s3")
        uris = [
            f"{moto_bucket.uri}/a.jpg",
            f"file://{tmp_path}/b.jpg",
            "memory://mixed/c.jpg",
            f"{moto_bucket.uri}/no.jpg",
            "nosuch://x/y.jpg",
            f"file://{tmp_path}/no.jpg",
            f"{moto_bucket.uri}/a.jpg",
            "s3://no-such-bucket-here/a.jpg",
            f"{moto_bucket.uri}/k?versionId=3",
            f"file://{tmp_path}",
        ]
        outcomes = BlockReader({"max_concurrency": 1}).fetch([ImageRef(uri) for uri in uris])
        expected = [b"s3", b"local", b"memory", "not_found", "storage_error", "not_found", b"s3"]
        assert _bytes(outcomes) == [*expected, "not_found", "storage_error", "storage_error"]
        assert [outcome.ref.uri for outcome in outcomes] == uris

    def test_a_name_that_is_not_utf8_fails_its_image_only(self, tmp_path: Path) -> None:
        for name in (b"caf\xe9.jpg", b"own\\xe9.jpg"):
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
        outcomes = BlockReader({}).fetch([ImageRef(uri) for uri in listed(str(tmp_path))])
        assert sorted(_bytes(outcomes), key=str) == [b"own\\xe9.jpg", "unreadable_name"]
        (failed,) = (outcome for outcome in outcomes if isinstance(outcome, FailedImage))
        assert failed.ref.uri == rf"file://{tmp_path}/caf\xe9.jpg"
        assert "rename the file" in failed.reason
        (gone,) = BlockReader({}).fetch([ImageRef(rf"file://{tmp_path}/gone\xe9.jpg")])
        assert _bytes([gone]) == ["not_found"]

    def test_empty_object_and_empty_block(self, bucket: Bucket) -> None:
        bucket.put("empty.jpg", b"")
        assert BlockReader({}).fetch([ImageRef(f"{bucket.uri}/empty.jpg")]) == [
            EncodedImage(ImageRef(f"{bucket.uri}/empty.jpg"), b"")
        ]
        assert BlockReader({}).fetch([]) == []


class TestRequests:
    def test_one_request_per_image(self, faulty_bucket: Bucket, faults: FaultProxy) -> None:
        names = [f"{number}.jpg" for number in range(200)]
        faulty_bucket.put_all({name: name.encode() * 1000 for name in names})
        faults.clear()
        reader = BlockReader({})
        refs = _refs(faulty_bucket.uri, names)
        outcomes = [outcome for begin in range(0, 200, 40) for outcome in reader.fetch(refs[begin : begin + 40])]
        assert _bytes(outcomes) == [name.encode() * 1000 for name in names]
        assert sorted(seen.key for seen in faults.requests) == sorted(names)
        assert {seen.method for seen in faults.requests} == {"GET"}

    def test_thirty_two_are_in_flight(self, faulty_bucket: Bucket, faults: FaultProxy) -> None:
        names = [f"{number}.jpg" for number in range(32)]
        faulty_bucket.put_all({name: name.encode() for name in names})
        # Nothing is answered before all have asked.
        faults.add(Fault(".jpg", "gather", method="GET", count=32))
        outcomes = BlockReader({}, IMPATIENT).fetch(_refs(faulty_bucket.uri, names))
        assert _bytes(outcomes) == [name.encode() for name in names]


class TestFaults:
    @pytest.mark.parametrize("kind", ["status", "reset", "reset_midway", "truncate", "hang"])
    def test_passing_faults_are_not_seen(self, faulty_bucket: Bucket, faults: FaultProxy, kind: Any) -> None:
        faulty_bucket.put_all({"a.jpg": b"a" * 1000, "b.jpg": b"b" * 1000})
        faults.add(Fault("a.jpg", kind, times=2 if kind == "status" else 1, method="GET"))
        outcomes = BlockReader(SHORT_TIMEOUTS, IMPATIENT).fetch(_refs(faulty_bucket.uri, ["a.jpg", "b.jpg"]))
        assert _bytes(outcomes) == [b"a" * 1000, b"b" * 1000]
        assert faults.count("b.jpg", "GET") == 1

    @pytest.mark.parametrize(
        ("fault", "code"),
        [
            (Fault("a.jpg", "status", method="GET"), "transient"),
            (Fault("a.jpg", "reset", method="GET"), "transient"),
            (Fault("a.jpg", "truncate", method="GET"), "transient"),
            (Fault("a.jpg", "hang", method="GET"), "transient"),
            (Fault("a.jpg", "status", method="GET", status=403, code="AccessDenied"), "access_denied"),
            (Fault("a.jpg", "status", method="GET", status=404, code="NoSuchKey"), "not_found"),
            (Fault("a.jpg", "status", method="GET", status=403, code="InvalidObjectState"), "storage_error"),
        ],
    )
    def test_lasting_faults_fail_their_image_only(
        self, faulty_bucket: Bucket, faults: FaultProxy, fault: Fault, code: str
    ) -> None:
        faulty_bucket.put_all({"a.jpg": b"a" * 1000, "b.jpg": b"b"})
        faults.add(fault)
        refs = _refs(faulty_bucket.uri, ["b.jpg", "a.jpg", "b.jpg"])
        before, failed, after = BlockReader(SHORT_TIMEOUTS, IMPATIENT).fetch(refs)
        assert _bytes([before, after]) == [b"b", b"b"]
        assert isinstance(failed, FailedImage)
        assert (failed.ref, failed.stage, failed.code) == (refs[1], "read", code)
        assert "\n" not in failed.reason

    def test_no_credentials_fail_every_row_the_same(self, moto: S3Server) -> None:
        refs = _refs("s3://bucket", ["a.jpg", "b.jpg"])
        outcomes = BlockReader({"endpoint_url": moto.endpoint}).fetch(refs)
        assert _bytes(outcomes) == ["access_denied", "access_denied"]


class TestProcesses:
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_reader_works_in_a_child(self, moto_bucket: Bucket, method: str) -> None:
        moto_bucket.put("a.jpg", b"bytes")
        refs = _refs(moto_bucket.uri, ["a.jpg"])
        reader = BlockReader({})
        assert _bytes(reader.fetch(refs)) == [b"bytes"]
        context = multiprocessing.get_context(method)
        receiving, sending = context.Pipe(duplex=False)
        child = context.Process(target=_fetch_and_send, args=(reader.fetch, refs, sending))
        child.start()
        assert receiving.poll(60)
        assert _bytes(receiving.recv()) == [b"bytes"]
        child.join()

    def test_reader_pickles(self, moto_bucket: Bucket) -> None:
        moto_bucket.put("a.jpg", b"bytes")
        reader = pickle.loads(pickle.dumps(BlockReader({}, IMPATIENT)))
        assert _bytes(reader.fetch(_refs(moto_bucket.uri, ["a.jpg"]))) == [b"bytes"]


def _fetch_and_send(fetch: Callable[[list[ImageRef]], object], refs: list[ImageRef], sending: Any) -> None:
    sending.send(fetch(refs))
