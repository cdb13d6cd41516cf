"""Whole objects of S3 in one request each, through obstore where it can stand in for s3fs. Knows no images.

Whatever names the place and who asks is taken from the client that s3fs made: endpoint, addressing, region,
certificates, time-outs and credentials, however botocore came by them. Retries are the caller's. s3fs itself reads

- where a storage option or setting has no translation here (`_OPTIONS`, `_CLIENT_OPTIONS`, `_CONFIG_OPTIONS`), or the
  client has a proxy, a certificate of its own, or another signature than version 4;
- from access points, directory buckets, and buckets of another region than the client's, which it finds by itself;
- keys that obstore would change: with an empty, `.` or `..` segment, or a control character;
- in a process forked from one that had read through obstore, whose threads it lacks.
"""

import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import fsspec
import fsspec.asyn

from batchdet.errors import StorageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Credential, S3Store

_log = logging.getLogger(__name__)

_CACHES = {"use_listings_cache", "listings_expiry_time", "max_paths", "default_fill_cache", "default_cache_type"}
_OPTIONS = {
    "anon", "client_kwargs", "config_kwargs", "default_block_size", "endpoint_url", "key", "max_concurrency",
    "password", "profile", "requester_pays", "secret", "token", "use_ssl", "username", *_CACHES,
}  # fmt: skip
_CLIENT_OPTIONS = {
    "aws_access_key_id", "aws_secret_access_key", "aws_session_token", "endpoint_url", "region_name", "use_ssl",
    "verify",
}  # fmt: skip
_CONFIG_OPTIONS = {
    "connect_timeout", "max_pool_connections", "read_timeout", "region_name", "retries", "s3", "signature_version",
    "use_dualstack_endpoint", "use_fips_endpoint",
}  # fmt: skip
_S3_OPTIONS = {"addressing_style", "payload_signing_enabled", "us_east_1_regional_endpoint"}
_CHANGED_KEY = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\x00-\x1f\x7f]")
_LONGEST_READ = timedelta(hours=1)
"""obstore wants a limit for a whole answer; s3fs has none, and the read time-out watches a stalled one."""

_reading_process: int | None = None
"""The process whose obstore has started its threads."""


@dataclass(frozen=True)
class _Credentials:
    """Credentials as they were when a block was begun; None where requests go unsigned."""

    key: str = field(repr=False)
    secret: str = field(repr=False)
    token: str | None = field(repr=False)

    def __call__(self) -> "S3Credential":
        return {"access_key_id": self.key, "secret_access_key": self.secret, "token": self.token, "expires_at": None}


@dataclass(frozen=True)
class _Place:
    """A bucket as s3fs's client reaches it."""

    bucket: str
    endpoint: str
    is_virtual_host: bool
    region: str
    requester_pays: bool
    connect_s: float
    read_s: float
    verify: bool | str


_places: "WeakKeyDictionary[Any, dict[str, _Place | str]]" = WeakKeyDictionary()


class ObjectReads:
    """The whole-object reads of one block, from threads; make a new one for the next, credentials may have changed.

    Args:
        fs: the filesystem.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem) -> None:
        self._fs = fs
        self._is_s3 = is_s3(fs)
        self._stores: dict[str, S3Store | None] = {}
        self._opening = threading.Lock()

    def read(self, path: str) -> bytes:
        """The object at `path`, as the filesystem spells it; foreign errors pass."""
        bucket, _, key = path.partition("/")
        store = self._store(bucket) if self._is_s3 and not _CHANGED_KEY.search(key) else None
        if store is None:
            return bytes(self._fs.cat_file(path))
        import obstore  # only where S3 is read

        # Threads cost half the CPU of obstore's coroutines.
        return bytes(obstore.get(store, key).bytes())

    def _store(self, bucket: str) -> "S3Store | None":
        if bucket not in self._stores:
            with self._opening:
                if bucket not in self._stores:
                    self._stores[bucket] = fsspec.asyn.sync(self._fs.loop, _open, self._fs, bucket)
        return self._stores[bucket]


@dataclass(frozen=True)
class S3Access:
    """An S3 bucket as another client is to reach it; credentials as they are now, None where requests go unsigned.

    Attributes:
        endpoint: without the bucket.
        bucket_endpoint: with the bucket where it is part of the host.
        connect_s, read_s: time-outs, seconds.
    """

    endpoint: str
    bucket_endpoint: str
    is_virtual_host: bool
    region: str
    connect_s: float
    read_s: float
    key: str | None = field(repr=False)
    secret: str | None = field(repr=False)
    token: str | None = field(repr=False)


def s3_access(fs: Any, path: str) -> S3Access:
    """How s3fs reaches a bucket, for clients that take keys and an endpoint; foreign errors pass.

    Raises:
        StorageError: it is reached in a way that they have no words for.
    """
    return cast(S3Access, fsspec.asyn.sync(fs.loop, _access, fs, path.partition("/")[0]))


def is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether it is s3fs's."""
    return "s3" in fs.protocol


def reader_of(fs: Any, path: str) -> str:
    """What reads whole objects of this bucket: `obstore`, or `s3fs` or another filesystem with the reason; one line.

    Foreign errors pass.
    """
    if not is_s3(fs):
        return type(fs).__module__.partition(".")[0]
    place = fsspec.asyn.sync(fs.loop, _place, fs, path.partition("/")[0])
    return f"s3fs ({place})" if isinstance(place, str) else "obstore"


async def _open(fs: Any, bucket: str) -> "S3Store | None":
    global _reading_process
    if _reading_process not in (None, os.getpid()):
        return None
    place = await _place(fs, bucket)
    if isinstance(place, str):
        return None
    _reading_process = os.getpid()
    return _store_of(place, await _credentials(await fs.set_session()))


async def _access(fs: Any, bucket: str) -> S3Access:
    place = await _place(fs, bucket)
    if isinstance(place, str):
        raise StorageError(f"s3://{bucket}", f"only s3fs reaches it: {place}")
    client = await fs.set_session()
    credentials = await _credentials(client)
    return S3Access(
        endpoint=client.meta.endpoint_url,
        bucket_endpoint=place.endpoint,
        is_virtual_host=place.is_virtual_host,
        region=place.region,
        connect_s=place.connect_s,
        read_s=place.read_s,
        key=credentials.key if credentials else None,
        secret=credentials.secret if credentials else None,
        token=credentials.token if credentials else None,
    )


async def _place(fs: Any, bucket: str) -> _Place | str:
    """Where obstore finds the bucket, or why it shall not look for it."""
    client = await fs.set_session()
    known = _places.setdefault(client, {})
    if bucket not in known:
        reason = _untranslated(fs, client, bucket) or await _elsewhere(client, bucket)
        known[bucket] = reason or await _found(fs, client, bucket)
        if reason:
            _log.info("s3://%s is read through s3fs: %s", bucket, reason)
    return known[bucket]


def _untranslated(fs: Any, client: Any, bucket: str) -> str | None:
    import botocore
    from botocore.utils import get_environ_proxies

    options = fs.storage_options
    config = options.get("config_kwargs") or {}
    unknown = [
        *_beyond(options, _OPTIONS),
        *_beyond(options.get("client_kwargs"), _CLIENT_OPTIONS),
        *_beyond(config, _CONFIG_OPTIONS),
        *_beyond(client.meta.config.s3, _S3_OPTIONS),
    ]
    if unknown:
        return f"storage option {unknown[0]}"
    if client.meta.config.signature_version not in ("s3v4", botocore.UNSIGNED):
        return f"signature version {client.meta.config.signature_version}"
    if client.meta.config.client_cert or client.meta.config.proxies or get_environ_proxies(client.meta.endpoint_url):
        return "a proxy or a client certificate"
    if ":" in bucket or bucket.endswith("--x-s3"):
        return "an access point or a directory bucket"
    return None


def _beyond(options: Mapping[str, Any] | None, translated: Iterable[str]) -> list[str]:
    return sorted(name for name, value in (options or {}).items() if name not in translated and value)


async def _elsewhere(client: Any, bucket: str) -> str | None:
    """Ask AWS, once for a bucket, whether it lies in the client's region."""
    from botocore.exceptions import ClientError

    if not re.search(r"\.amazonaws\.com(\.cn)?$", urlsplit(client.meta.endpoint_url).hostname or ""):
        return None
    try:
        answer = await client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
    region = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-bucket-region")
    if region in (None, client.meta.region_name):
        return None
    return f"it lies in {region}; set AWS_DEFAULT_REGION"


async def _found(fs: Any, client: Any, bucket: str) -> _Place:
    url = urlsplit(client.meta.endpoint_url)
    # botocore knows when a bucket's name goes into the host, and shows it in a URL that it signs.
    shown = await client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "key"})
    is_virtual_host = (urlsplit(shown).hostname or "").startswith(f"{bucket}.")
    netloc = f"{bucket}.{url.netloc}" if is_virtual_host else url.netloc
    return _Place(
        bucket=bucket,
        endpoint=f"{url.scheme}://{netloc}{url.path.rstrip('/')}",
        is_virtual_host=is_virtual_host,
        region=client.meta.region_name,
        requester_pays=bool(fs.requester_pays),
        connect_s=client.meta.config.connect_timeout,
        read_s=client.meta.config.read_timeout,
        verify=client._endpoint.http_session._verify,
    )


async def _credentials(client: Any) -> _Credentials | None:
    """The credentials the client would sign with now, refreshed where botocore says so."""
    import botocore
    from botocore.exceptions import NoCredentialsError

    if client.meta.config.signature_version is botocore.UNSIGNED:
        return None
    source = client._request_signer._credentials
    if source is None:
        raise NoCredentialsError
    now = await source.get_frozen_credentials()
    return _Credentials(now.access_key, now.secret_key, now.token)


@lru_cache(maxsize=64)
def _store_of(place: _Place, credentials: _Credentials | None) -> "S3Store":
    from obstore.store import S3Store

    # Every setting is given: obstore would take the others from the environment by rules of its own.
    return S3Store(
        place.bucket,
        config={
            "endpoint": place.endpoint,
            "aws_endpoint_url_s3": place.endpoint,
            "virtual_hosted_style_request": place.is_virtual_host,
            "region": place.region,
            "request_payer": place.requester_pays,
            "skip_signature": credentials is None,
            "s3_express": False,
        },
        client_options={
            "allow_http": True,
            "connect_timeout": timedelta(seconds=place.connect_s),
            "read_timeout": timedelta(seconds=place.read_s),
            "timeout": _LONGEST_READ,
            **_trust(place),
        },
        retry_config={"max_retries": 0},
        credential_provider=credentials,
    )


def _trust(place: _Place) -> "ClientConfig":
    from botocore.httpsession import get_cert_path

    if not place.endpoint.startswith("https:"):
        return {}
    bundle = get_cert_path(place.verify)
    return {"root_certificate": Path(bundle).read_bytes()} if bundle else {"allow_invalid_certificates": True}
