"""An object is created once and replaced only as it was read, whoever else writes at the same time."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from batchdet.errors import ConflictError, StorageError
from batchdet.storage.exclusive import Seen, create_bytes, read_seen, remove_seen, replace_seen
from batchdet.storage.filesystem import Store, open_store
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import Bucket
from tests.storage.stores import IMPATIENT

WRITERS = 4
LINES_EACH = 5


@pytest.fixture(params=["file", "memory", "moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def store(request: pytest.FixtureRequest, tmp_path: Path, reach: Callable[[Bucket], Bucket]) -> Store:
    if request.param == "file":
        return open_store(str(tmp_path / "out put"), {})
    if request.param == "memory":
        return open_store(f"memory://{tmp_path.name}-{id(request)}/out put", {})
    return open_store(f"{reach(request.getfixturevalue('new_bucket_on')(request.param)).uri}/out put", {})


def test_an_object_is_created_once(store: Store) -> None:
    assert read_seen(store, "a/b.json") == Seen(None)
    create_bytes(store, "a/b.json", b"first")
    with pytest.raises(ConflictError, match=r"a/b\.json: somebody else wrote it meanwhile"):
        create_bytes(store, "a/b.json", b"second")
    create_bytes(store, "a/b.json", b"first")
    assert store.read_bytes("a/b.json") == b"first"


def test_an_object_is_replaced_as_it_was_read(store: Store) -> None:
    create_bytes(store, "a.json", b"1")
    seen = read_seen(store, "a.json")
    assert seen.data == b"1"
    replace_seen(store, "a.json", b"2", seen)
    with pytest.raises(ConflictError):
        replace_seen(store, "a.json", b"3", seen)
    assert read_seen(store, "a.json").data == b"2"
    replace_seen(store, "a.json", b"2", seen)


def test_an_object_is_removed_as_it_was_read(store: Store) -> None:
    create_bytes(store, "a.json", b"1")
    old = read_seen(store, "a.json")
    replace_seen(store, "a.json", b"2", old)
    with pytest.raises(ConflictError):
        remove_seen(store, "a.json", old)
    assert store.read_bytes("a.json") == b"2"
    remove_seen(store, "a.json", read_seen(store, "a.json"))
    assert not store.exists("a.json")
    remove_seen(store, "a.json", old)


def test_a_removed_object_is_not_as_it_was_read(store: Store) -> None:
    create_bytes(store, "a.json", b"1")
    seen = read_seen(store, "a.json")
    store.delete("a.json")
    with pytest.raises(ConflictError):
        replace_seen(store, "a.json", b"2", seen)
    assert not store.exists("a.json")


def test_no_line_is_lost_when_many_write_to_a_disk(tmp_path: Path) -> None:
    together = threading.Barrier(WRITERS)

    def write(number: int) -> None:
        store = open_store(str(tmp_path), {})
        together.wait()
        for line in range(LINES_EACH):
            while True:
                seen = read_seen(store, "log")
                try:
                    replace_seen(store, "log", (seen.data or b"") + f"{number}-{line}\n".encode(), seen)
                except ConflictError:
                    continue
                break

    writers = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = open_store(str(tmp_path), {}).read_bytes("log").decode().split()
    assert sorted(lines) == sorted(f"{number}-{line}" for number in range(WRITERS) for line in range(LINES_EACH))


def test_a_lost_answer_is_no_conflict(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    """The store took the object and the connection broke before it said so: the second try finds our own bytes."""
    store = open_store(faulty_bucket.uri, {}, IMPATIENT)
    faults.add(Fault("a.json", "lose_answer", method="PUT", times=1))
    create_bytes(store, "a.json", b"mine")
    assert faults.count("a.json", "PUT") == 2
    assert faulty_bucket.get("a.json") == b"mine"


def test_a_store_that_fails_is_no_conflict(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    store = open_store(faulty_bucket.uri, {}, IMPATIENT)
    faults.add(Fault("a.json", "status", status=403, method="PUT"))
    with pytest.raises(StorageError) as raised:
        create_bytes(store, "a.json", b"mine")
    assert not isinstance(raised.value, ConflictError)
