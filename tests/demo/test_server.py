"""The demo's S3 server answers a real client, and is gone with its owner however that ends."""

import os
import select
import signal
import socket
import subprocess
import sys

import boto3
import pytest

from batchdet.demo.server import serve_bucket
from batchdet.errors import StorageError

OWNER = """
import sys
from batchdet.demo.server import serve_bucket
with serve_bucket() as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""
pidfd_only = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux to await a process not ours")


def await_end(pid: int, seconds: float) -> bool:
    """True once the process is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def test_stores_and_returns_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_bucket() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="photos")
        client.put_object(Bucket="photos", Key="a b#%20ü.jpg", Body=b"pixels")
        listed = client.list_objects_v2(Bucket="photos")["Contents"]
        assert [(entry["Key"], entry["Size"]) for entry in listed] == [("a b#%20ü.jpg", 6)]
        assert client.get_object(Bucket="photos", Key="a b#%20ü.jpg")["Body"].read() == b"pixels"
        client.close()


@pidfd_only
def test_ends_with_the_block_even_when_it_raises() -> None:
    with pytest.raises(RuntimeError, match="in the block"), serve_bucket() as server:
        raise RuntimeError("in the block")
    assert await_end(server.pid, 0)
    port = int(server.endpoint_url.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


@pidfd_only
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_ends_with_its_owner(sent: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as owner:
        assert owner.stdout is not None
        server_pid = int(owner.stdout.readline())
        owner.send_signal(sent)
        owner.wait(30)
    assert await_end(server_pid, 30)


def test_two_servers_do_not_meet() -> None:
    with serve_bucket() as first, serve_bucket() as second:
        assert first.endpoint_url != second.endpoint_url


def test_waits_no_longer_than_its_patience() -> None:
    with pytest.raises(StorageError, match="did not answer within 0 s"), serve_bucket(patience_seconds=0.0):
        pass
