"""Stores keep what they are given under the very name, fail in our words only, and never half."""

import multiprocessing
import os
import pickle
import resource
import socket
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchdet.errors import (
    AccessDeniedError,
    BatchdetError,
    NotFoundError,
    StorageError,
    TransientStorageError,
)
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.patience import Patience, retrying
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import Bucket, S3Server
from tests.storage.stores import IMPATIENT, NASTY_NAMES, SHORT_TIMEOUTS

KINDS = ["file", "memory", "moto", pytest.param("ceph", marks=pytest.mark.ceph)]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path, reach: Callable[[Bucket], Bucket]) -> Store:
    """An empty store of each kind."""
    if request.param == "file":
        return open_store(str(tmp_path / "out put"), {})
    if request.param == "memory":
        return open_store(f"memory://{tmp_path.name}-{id(request)}/out put", {})
    bucket = reach(request.getfixturevalue("new_bucket_on")(request.param))
    return open_store(f"{bucket.uri}/out put", {})


class TestBytes:
    def test_every_nasty_name_is_an_object_of_its_own(self, store: Store) -> None:
        for name in NASTY_NAMES:
            store.write_bytes(name, name.encode())
        assert all(store.exists(name) for name in NASTY_NAMES)
        assert {name: store.read_bytes(name).decode() for name in NASTY_NAMES} == {name: name for name in NASTY_NAMES}
        assert list(store.list("")) == sorted(name for name in NASTY_NAMES if not name.startswith("."))

    def test_write_replaces(self, store: Store) -> None:
        store.write_bytes("a/b.bin", b"long before")
        store.write_bytes("a/b.bin", b"")
        assert store.read_bytes("a/b.bin") == b""

    def test_other_clients_see_the_same_key(self, bucket: Bucket) -> None:
        store = open_store(f"{bucket.uri}/folder", {})
        for name in NASTY_NAMES:
            store.write_bytes(name, b"x")
        assert sorted(bucket.keys()) == sorted(f"folder/{name}" for name in NASTY_NAMES)

    def test_missing_object_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFoundError, match="not found"):
            store.read_bytes("no/such.bin")
        assert not store.exists("no/such.bin")

    def test_delete_twice(self, store: Store) -> None:
        store.write_bytes("a.bin", b"x")
        store.delete("a.bin")
        assert not store.exists("a.bin")
        store.delete("a.bin")

    def test_probe_leaves_nothing(self, store: Store) -> None:
        store.probe_writable()
        assert list(store.list("")) == []
        assert not store.exists(".batchdet-probe")

    def test_listing_is_fresh(self, store: Store) -> None:
        assert list(store.list("a")) == []
        store.write_bytes("a/1.bin", b"x")
        assert list(store.list("a")) == ["a/1.bin"]
        other = open_store(store.uri, {})
        other.write_bytes("a/2.bin", b"x")
        other.write_bytes("a/deep/er/3.bin", b"x")
        assert list(store.list("a")) == ["a/1.bin", "a/2.bin"]
        assert list(store.list_folders("a")) == ["a/deep"]
        assert list(store.list_folders("")) == ["a"]
        store.delete("a/1.bin")
        assert list(store.list("a")) == ["a/2.bin"]

    def test_listing_a_file_gives_nothing(self, store: Store) -> None:
        store.write_bytes("a.bin", b"x")
        assert list(store.list("a.bin")) == []
        assert list(store.list_folders("a.bin")) == []

    def test_folder_markers_are_no_files(self, bucket: Bucket) -> None:
        bucket.put_all({"a/": b"", "a/1.bin": b"x", "a/b/": b""})
        store = open_store(bucket.uri, {})
        assert list(store.list("a")) == ["a/1.bin"]
        assert list(store.list_folders("a")) == ["a/b"]

    @pytest.mark.slow
    def test_long_listing(self, moto_bucket: Bucket) -> None:
        names = [f"x/{number:05}.bin" for number in range(1005)]
        moto_bucket.put_all(dict.fromkeys(names, b""))
        assert list(open_store(moto_bucket.uri, {}).list("x")) == names, "S3 gives 1000 a page"

    def test_parquet_columns_by_range(self, store: Store) -> None:
        table = pa.table({"a": list(range(1000)), "b": ["x" * 50] * 1000})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=100)
        store.write_bytes("t.parquet", sink.getvalue().to_pybytes())
        with store.open_input("t.parquet") as stream, pq.ParquetFile(stream) as file:
            assert file.read_row_group(3, columns=["a"]).column("a").to_pylist() == list(range(300, 400))
        with pytest.raises(NotFoundError):
            store.open_input("no.parquet")


class TestNames:
    @pytest.mark.parametrize(
        "name",
        ["../x", "a/../x", "a/../../x", "/etc/passwd", "a//b", "./a", "a/.", "..", "a/..", "a\0b", "a/"],
    )
    def test_names_stay_inside(self, tmp_path: Path, name: str) -> None:
        store = open_store(str(tmp_path / "inner"), {})
        verbs: list[Callable[[], object]] = [
            lambda: store.write_bytes(name, b"x"),
            lambda: store.read_bytes(name),
            lambda: store.exists(name),
            lambda: store.delete(name),
            lambda: list(store.list(name)),
            lambda: store.open_input(name),
        ]
        for verb in verbs:
            with pytest.raises(StorageError, match="not a name inside the folder"):
                verb()
        assert list(tmp_path.iterdir()) == []

    @given(name=st.text(min_size=1, max_size=40))
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_name_is_kept_or_refused(self, tmp_path: Path, name: str) -> None:
        folder = tmp_path / "inner"
        store = open_store(str(folder), {})
        try:
            store.write_bytes(name, b"x")
        except StorageError:
            return
        assert store.read_bytes(name) == b"x"
        assert Path(store.path(name)).resolve().is_relative_to(folder.resolve())
        store.delete(name)


class TestUris:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("out", "file://{cwd}/out"),
            ("./out/", "file://{cwd}/out"),
            ("a/../out", "file://{cwd}/out"),
            ("~/out", "file://{home}/out"),
            ("/abs/out//", "file:///abs/out"),
            ("file:///abs/a%20b", "file:///abs/a%20b"),
            ("file:///abs/a b#c?d*e[f]::g", "file:///abs/a b#c?d*e[f]::g"),
            ("odd::name", "file://{cwd}/odd::name"),
            ("file:odd", "file://{cwd}/file:odd"),
            ("local:///abs", "file:///abs"),
            ("/", "file:///"),
            ("memory://x/y/", "memory:///x/y"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3a://bucket/a b/", "s3://bucket/a b"),
            ("S3://bucket/a", "s3://bucket/a"),
            ("s3://bucket/a#b?c*d%20e::f/", "s3://bucket/a#b?c*d%20e::f"),
        ],
    )
    def test_uri_is_full_and_undecoded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/the/home")
        full = expected.format(cwd=tmp_path, home="/the/home")
        assert open_store(given, {}).uri == full
        child = open_store(given, {}).child_uri("a/b c")
        assert child == f"{full.rstrip('/') if full != 'file:///' else 'file://'}/a/b c"
        assert open_store(child, {}).uri == child

    @pytest.mark.parametrize(
        ("uri", "said"),
        [
            ("nosuch://x", "nosuch"),
            ("s3://", "names no bucket"),
            ("s3:///key", "names no bucket"),
            ("simplecache::s3://b/x", "chained"),
            ("zip://*.jpg::s3://b/x.zip", "chained"),
            ("s3://b/k?versionId=7", "versionId"),
            ("https://user:hunter2@127.0.0.1:9/x?sig=hunter2", "127.0.0.1"),
        ],
    )
    def test_unusable_uri_says_so_in_one_line(self, uri: str, said: str) -> None:
        with pytest.raises(StorageError, match=said) as caught:
            open_store(uri, {}, IMPATIENT).read_bytes("x")
        _assert_one_clean_line(caught.value)

    def test_unknown_option_says_so(self) -> None:
        with pytest.raises(StorageError, match=r"storage options.*bogus"):
            open_store("s3://bucket", {"bogus": 1})

    def test_missing_profile_says_so(self) -> None:
        with pytest.raises(AccessDeniedError, match="credentials"):
            open_store("s3://bucket", {"profile": "nobody"})


class TestLocalDisk:
    def test_unwritable_folder_is_access_denied(self, tmp_path: Path) -> None:
        if os.geteuid() == 0:
            target = "/proc/batchdet"
        else:
            target = str(tmp_path / "locked")
            Path(target).mkdir(mode=0o500)
        with pytest.raises((AccessDeniedError, NotFoundError)) as caught:
            open_store(target, {}).probe_writable()
        _assert_one_clean_line(caught.value)

    def test_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x")
        with pytest.raises(StorageError):
            open_store(str(tmp_path / "file"), {}).probe_writable()
        with pytest.raises(StorageError, match="directory"):
            open_store(str(tmp_path), {}).read_bytes("")

    def test_target_that_is_a_folder_leaves_no_scratch(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        with pytest.raises(StorageError):
            open_store(str(tmp_path), {}).write_bytes("a", b"x")
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_a_write_the_system_refuses_half_way_leaves_nothing(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path), {})
        store.write_bytes("a.bin", b"before")
        child = multiprocessing.get_context("fork").Process(target=_write_over_the_limit, args=(store,))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert store.read_bytes("a.bin") == b"before"
        assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]

    def test_permissions_follow_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            open_store(str(tmp_path), {}).write_bytes("a.bin", b"x")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o640

    def test_readers_see_old_or_new_never_half(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path), {})
        versions = [bytes([value]) * 200_000 for value in (1, 2)]
        store.write_bytes("a.bin", versions[0])
        done = threading.Event()

        def rewrite() -> None:
            for turn in range(60):
                store.write_bytes("a.bin", versions[turn % 2])
            done.set()

        writer = threading.Thread(target=rewrite)
        writer.start()
        seen = set()
        while not done.is_set():
            seen.add(store.read_bytes("a.bin"))
        writer.join()
        assert seen <= set(versions)
        assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]

    def test_a_killed_write_leaves_only_hidden_names(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path), {})
        child = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(store,))
        child.start()
        while not list(tmp_path.rglob("*.parquet")):
            assert child.is_alive()
        child.kill()
        child.join()
        left = [path.name for path in (tmp_path / "images").iterdir()]
        assert {name for name in left if not name.startswith(".")} == {"a.parquet"}
        assert list(store.list("images")) == ["images/a.parquet"]
        assert len(store.read_bytes("images/a.parquet")) == 3_000_000


class TestProcesses:
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_store_works_in_a_child(self, moto_bucket: Bucket, method: str) -> None:
        store = open_store(f"{moto_bucket.uri}/x", {})
        store.write_bytes("from-parent", b"1")
        context = multiprocessing.get_context(method)
        child = context.Process(target=_copy, args=(store, "from-parent", "from-child"))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert store.read_bytes("from-child") == b"1"

    def test_store_pickles_small_and_shows_no_options(self, moto_bucket: Bucket) -> None:
        store = open_store(moto_bucket.uri, {"key": "KEY-ID", "secret": "hunter2"})
        assert "hunter2" not in repr(store) + str(store)
        again = pickle.loads(pickle.dumps(store))
        assert again == store
        again.write_bytes("a", b"x")
        assert store.read_bytes("a") == b"x"

    def test_store_works_from_many_threads(self, store: Store) -> None:
        wrong: list[str] = []

        def work(number: int) -> None:
            store.write_bytes(f"t/{number}", str(number).encode())
            if store.read_bytes(f"t/{number}") != str(number).encode():
                wrong.append(str(number))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(list(store.list("t"))) == 12


FAULTS: list[tuple[str, Fault, type[StorageError], int, str]] = [
    ("throttled", Fault("", "status"), TransientStorageError, 3, "SlowDown"),
    ("broken store", Fault("", "status", status=500, code="InternalError"), TransientStorageError, 3, "InternalError"),
    ("gateway", Fault("", "status", status=502, code="BadGateway"), TransientStorageError, 3, "502"),
    ("too many", Fault("", "status", status=429, code="TooManyRequests"), TransientStorageError, 3, "429"),
    ("slow client", Fault("", "status", status=400, code="RequestTimeout"), TransientStorageError, 3, "RequestTimeout"),
    ("forbidden", Fault("", "status", status=403, code="AccessDenied"), AccessDeniedError, 1, "access denied"),
    ("bad key", Fault("", "status", status=403, code="InvalidAccessKeyId"), AccessDeniedError, 1, "credentials"),
    ("bad secret", Fault("", "status", status=403, code="SignatureDoesNotMatch"), AccessDeniedError, 1, "credentials"),
    ("old token", Fault("", "status", status=400, code="ExpiredToken"), AccessDeniedError, 1, "credentials"),
    ("clock", Fault("", "status", status=403, code="RequestTimeTooSkewed"), AccessDeniedError, 1, "credentials"),
    ("no bucket", Fault("", "status", status=404, code="NoSuchBucket"), NotFoundError, 1, "no such bucket"),
    ("nonsense", Fault("", "status", status=418, code="Teapot"), StorageError, 1, "Teapot"),
    ("region", Fault("", "status", status=400, code="IllegalLocation"), StorageError, 1, "IllegalLocation"),
    ("reset", Fault("", "reset"), TransientStorageError, 3, "connect"),
    ("hang", Fault("", "hang"), TransientStorageError, 2, "timed out"),
]
"""What goes wrong on the wire, what it is for us, the tries it is worth, and a word its message holds."""

BLIND_TO_ABSENCE = {"list", "list_folders", "exists", "delete"}
"""Verbs for which a bucket that is not there holds nothing."""

VERBS: dict[str, Callable[[Store], object]] = {
    "read_bytes": lambda store: store.read_bytes("a.bin"),
    "write_bytes": lambda store: store.write_bytes("a.bin", b"x" * 100),
    "list": lambda store: list(store.list("")),
    "list_folders": lambda store: list(store.list_folders("")),
    "exists": lambda store: store.exists("a.bin"),
    "delete": lambda store: store.delete("a.bin"),
    "open_input": lambda store: store.open_input("a.bin").read(),
    "probe_writable": lambda store: store.probe_writable(),
}


class TestFaults:
    @pytest.mark.parametrize(
        ("fault", "kind", "tries", "said"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS]
    )
    def test_nothing_foreign_leaks(
        self, faulty_bucket: Bucket, faults: FaultProxy, fault: Fault, kind: type[StorageError], tries: int, said: str
    ) -> None:
        faulty_bucket.put("a.bin", b"x" * 1000)
        patience = replace(IMPATIENT, attempts=tries, write_s=0.5)
        store = open_store(faulty_bucket.uri, SHORT_TIMEOUTS, patience if tries > 1 else IMPATIENT)
        for verb, call in VERBS.items():
            faults.clear()
            faults.add(replace(fault))
            if kind is NotFoundError and verb in BLIND_TO_ABSENCE:
                call(store)
                continue
            with pytest.raises(StorageError) as caught:
                call(store)
            _assert_one_clean_line(caught.value)
            assert faulty_bucket.uri in str(caught.value)
            # A HEAD has a status and no body, so no code to tell by.
            if fault.kind == "status" and "HEAD" in {seen.method for seen in faults.requests}:
                continue
            assert type(caught.value) is kind
            assert said in str(caught.value)
            assert len(faults.requests) == tries or fault.kind != "status", "one retry layer"

    @pytest.mark.parametrize("kind", ["truncate", "reset_midway"])
    def test_short_body_is_an_error_not_short_bytes(self, faulty_bucket: Bucket, faults: FaultProxy, kind: Any) -> None:
        faulty_bucket.put("a.bin", b"x" * 100_000)
        store = open_store(faulty_bucket.uri, {}, IMPATIENT)
        faults.add(Fault("a.bin", kind, times=1, method="GET"))
        assert len(store.read_bytes("a.bin")) == 100_000
        faults.add(Fault("a.bin", kind, method="GET"))
        with pytest.raises(TransientStorageError, match=r"broke off.*3 attempts"):
            store.read_bytes("a.bin")

    def test_passing_faults_pass(self, faulty_bucket: Bucket, faults: FaultProxy) -> None:
        store = open_store(faulty_bucket.uri, SHORT_TIMEOUTS, IMPATIENT)
        for number, kind in enumerate(("status", "reset", "hang")):
            faults.add(Fault(f"{number}.bin", kind, times=1, method="PUT"))  # type: ignore[arg-type]
            faults.add(Fault(f"{number}.bin", kind, times=1, method="GET"))  # type: ignore[arg-type]
            store.write_bytes(f"{number}.bin", b"x" * 5000)
            assert store.read_bytes(f"{number}.bin") == b"x" * 5000

    def test_one_request_per_verb(self, faulty_bucket: Bucket, faults: FaultProxy) -> None:
        store = open_store(faulty_bucket.uri, {})
        faults.clear()
        store.write_bytes("a.bin", b"x" * 1_000_000)
        store.read_bytes("a.bin")
        list(store.list(""))
        assert [seen.method for seen in faults.requests] == ["PUT", "GET", "GET"]

    def test_dead_endpoint(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        store = open_store("s3://bucket", {"endpoint_url": endpoint, "key": "KEY-ID", "secret": "hunter2"}, IMPATIENT)
        for verb in VERBS.values():
            with pytest.raises(TransientStorageError, match=f"cannot connect to {endpoint}") as caught:
                verb(store)
            _assert_one_clean_line(caught.value)

    def test_endpoint_that_drops_every_packet(self, deaf_endpoint: str) -> None:
        options = {**SHORT_TIMEOUTS, "endpoint_url": deaf_endpoint, "key": "KEY-ID", "secret": "hunter2"}
        with pytest.raises(TransientStorageError) as caught:
            open_store("s3://bucket", options, IMPATIENT).read_bytes("a.bin")
        _assert_one_clean_line(caught.value)

    def test_unknown_host(self) -> None:
        options = {"endpoint_url": "http://no-such-host.invalid", "key": "KEY-ID", "secret": "hunter2"}
        with pytest.raises(TransientStorageError, match=r"cannot connect to http://no-such-host\.invalid"):
            open_store("s3://bucket", options, IMPATIENT).read_bytes("a.bin")

    def test_no_credentials(self, moto: S3Server) -> None:
        store = open_store("s3://bucket", {"endpoint_url": moto.endpoint})
        with pytest.raises(AccessDeniedError, match=r"no usable credentials.*AWS_ACCESS_KEY_ID"):
            store.probe_writable()

    @pytest.mark.ceph
    def test_wrong_credentials(self, ceph: S3Server) -> None:
        for key, secret in ((ceph.access_key, "not-hunter2"), ("NOT-A-KEY", "hunter2")):
            store = open_store("s3://bucket", {"endpoint_url": ceph.endpoint, "key": key, "secret": secret})
            with pytest.raises(AccessDeniedError, match="credentials") as caught:
                store.read_bytes("a.bin")
            _assert_one_clean_line(caught.value, key, secret)

    def test_missing_bucket(self, bucket: Bucket) -> None:
        store = open_store("s3://no-such-bucket-here/x", {})
        with pytest.raises(NotFoundError, match="no such bucket"):
            store.probe_writable()
        with pytest.raises(NotFoundError, match="no such bucket"):
            store.read_bytes("a.bin")


@pytest.fixture
def deaf_endpoint() -> Iterator[str]:
    """A port whose queue of connections is full: the kernel drops what would connect."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for filler in fillers:
            filler.close()


class TestPatience:
    def test_only_transient_errors_are_tried_again(self) -> None:
        calls: list[int] = []

        def fail() -> None:
            calls.append(1)
            raise AccessDeniedError("s3://b/x", "no")

        with pytest.raises(AccessDeniedError):
            IMPATIENT.run(fail)
        assert len(calls) == 1

    def test_waits_grow_and_are_bounded(self) -> None:
        wait = retrying(Patience()).wait
        waits = [wait(type("State", (), {"attempt_number": number})()) for number in range(1, 10)]
        assert all(0.2 * 2**n <= wait <= 0.2 * 2**n + 0.2 for n, wait in enumerate(waits[:4]))
        assert max(waits) <= 5.2

    def test_calls_inside_calls_and_of_other_threads_have_attempts_of_their_own(self) -> None:
        calls: Counter[tuple[int, str]] = Counter()

        def fail(number: int, place: str) -> None:
            calls[number, place] += 1
            raise TransientStorageError("s3://b/x", place)

        def outer(number: int) -> None:
            with pytest.raises(TransientStorageError, match="inner; gave up after 3 attempts"):
                IMPATIENT.run(partial(fail, number, "inner"))
            fail(number, "outer")

        def run(number: int) -> None:
            with pytest.raises(TransientStorageError, match="outer; gave up after 3 attempts"):
                IMPATIENT.run(partial(outer, number))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, range(8)))
        assert calls == {(number, place): tries for number in range(8) for place, tries in (("inner", 9), ("outer", 3))}


def _assert_one_clean_line(error: BatchdetError, *secrets: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert text.isprintable()
    assert len(text) < 400
    for secret in (*secrets, "hunter2", "KEY-ID", "moto-access", "moto-hush-hush"):
        assert secret not in text
    assert "Traceback" not in text


def _copy(store: Store, source: str, target: str) -> None:
    store.write_bytes(target, store.read_bytes(source))


def _write_over_the_limit(store: Store) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with pytest.raises(StorageError, match="too large"):
        store.write_bytes("a.bin", b"x" * 100_000)


def _write_for_ever(store: Store) -> None:
    while True:
        store.write_bytes("images/a.parquet", b"x" * 3_000_000)
