"""Fixtures for every room: S3 servers, buckets, and a proxy that fails on purpose.

bucket          a fresh bucket on moto's server, and on Ceph's gateway where it is installed; the environment reaches it
moto_bucket     a fresh bucket on moto's server only; the environment reaches it
faulty_bucket   a fresh bucket on moto's server seen through `faults`; the environment reaches it through the proxy
faults          the proxy: `faults.add(Fault("a.jpg", "status", times=2))`, `faults.count("a.jpg", "GET")`
hook            a webhook that answers as told and keeps what it got
data_folder     real pictures, where they lie beside the repository
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fsspec
import pytest

from tests.servers.ceph import ceph_server, missing_programs
from tests.servers.faults import FaultProxy, fault_proxy
from tests.servers.hook import Hook, running_hook
from tests.servers.s3 import Bucket, S3Server, moto_server, new_bucket


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the credentials, profiles or endpoints of the person who runs it."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exported graphs are made once a session, and never taken from or left in the cache of the person who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def ceph() -> Iterator[S3Server]:
    missing = missing_programs()
    if missing:
        pytest.skip(f"Ceph's object gateway is not installed: no {', '.join(missing)}")
    with ExitStack() as stack:
        try:
            server = stack.enter_context(_ceph_in_new_folder())
        except RuntimeError:
            # Another program took the port between its choice and the gateway's start.
            server = stack.enter_context(_ceph_in_new_folder())
        yield server


@contextmanager
def _ceph_in_new_folder() -> Iterator[S3Server]:
    # Not tmp_path: Unix socket names would grow too long.
    folder = Path(tempfile.mkdtemp(prefix="ceph-"))
    try:
        with ceph_server(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def new_bucket_on(request: pytest.FixtureRequest) -> Callable[[str], Bucket]:
    """A fresh bucket on the server of a name: `moto` or `ceph`."""
    return lambda name: new_bucket(request.getfixturevalue(name))


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Bucket], Bucket]]:
    """Makes the environment lead to a bucket's server."""

    def point_environment(bucket: Bucket) -> Bucket:
        for name, value in bucket.env.items():
            monkeypatch.setenv(name, value)
        _forget_filesystems()
        return bucket

    yield point_environment
    _forget_filesystems()


def _forget_filesystems() -> None:
    # fsspec keeps one filesystem per options, whatever the environment says meanwhile.
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def bucket(
    request: pytest.FixtureRequest, new_bucket_on: Callable[[str], Bucket], reach: Callable[[Bucket], Bucket]
) -> Bucket:
    return reach(new_bucket_on(request.param))


@pytest.fixture
def moto_bucket(moto: S3Server, reach: Callable[[Bucket], Bucket]) -> Bucket:
    return reach(new_bucket(moto))


@pytest.fixture(scope="session")
def proxy(moto: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(moto.endpoint) as proxy:
        yield proxy


@pytest.fixture
def faults(proxy: FaultProxy, moto: S3Server) -> Iterator[FaultProxy]:
    proxy.clear(moto.endpoint)
    yield proxy
    proxy.clear(moto.endpoint)


@pytest.fixture
def faulty_bucket(faults: FaultProxy, moto: S3Server, reach: Callable[[Bucket], Bucket]) -> Bucket:
    return reach(new_bucket(moto).behind(faults.endpoint))


@pytest.fixture
def hook() -> Iterator[Hook]:
    with running_hook() as hook:
        yield hook


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real pictures: the folder in BATCHDET_TEST_DATA, or `shared/data` beside the repository."""
    beside = Path(__file__).parents[1].resolve().parent / "shared" / "data"
    folder = Path(os.environ.get("BATCHDET_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set BATCHDET_TEST_DATA")
    return folder
