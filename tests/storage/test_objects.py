"""obstore stands in for s3fs unseen: the same requests, the same failures, whoever is asked for credentials."""

import datetime
import json
import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import botocore.exceptions
import fsspec
import pytest

from batchdet.records import EncodedImage, FailedImage, ImageRef
from batchdet.storage.filesystem import open_store
from batchdet.storage.objects import _elsewhere, _store_of, reader_of
from batchdet.storage.reader import BlockReader
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import Bucket
from tests.storage.stores import IMPATIENT

TIMEOUTS = {"config_kwargs": {"connect_timeout": 0.3, "read_timeout": 0.5}}
UNTRANSLATED = {"s3_additional_kwargs": {"ExpectedBucketOwner": "123456789012"}}
"""An option that has no translation: the same block, read through s3fs."""

FAULTS = [
    Fault("a.jpg", "status"),
    *(
        Fault("a.jpg", "status", status=status, code=code)
        for status, code in [
            (400, "ExpiredToken"), (401, "Unauthorized"), (403, "AccessDenied"), (403, "SignatureDoesNotMatch"),
            (403, "InvalidObjectState"), (404, "NoSuchBucket"), (404, "NoSuchKey"), (409, "OperationAborted"),
            (412, "PreconditionFailed"), (418, "Teapot"), (429, "TooManyRequests"), (500, "InternalError"),
            (502, "BadGateway"), (504, "GatewayTimeout"),
        ]
    ),
    Fault("a.jpg", "hang"),
    Fault("a.jpg", "truncate"),
    Fault("a.jpg", "reset_midway"),
]  # fmt: skip


def _read(bucket: Bucket, options: Mapping[str, Any]) -> EncodedImage | FailedImage:
    (outcome,) = BlockReader(options, IMPATIENT).fetch([ImageRef(f"{bucket.uri}/a.jpg")])
    return outcome


def _reader(bucket: Bucket, options: Mapping[str, Any]) -> str:
    store = open_store(bucket.uri, options)
    return reader_of(store.fs, store.root)


class TestFailures:
    def test_the_same_rows_after_as_many_requests(self, faulty_bucket: Bucket, faults: FaultProxy) -> None:
        faulty_bucket.put("a.jpg", b"a" * 1000)
        rows = []
        for options in (TIMEOUTS, {**TIMEOUTS, **UNTRANSLATED}):
            for fault in FAULTS:
                faults.clear()
                faults.add(replace(fault))
                outcome = _read(faulty_bucket, options)
                assert isinstance(outcome, FailedImage)
                reason = re.sub(r"broke off \(\w+\)", "broke off", outcome.reason)
                rows.append((fault.kind, fault.code, outcome.stage, outcome.code, reason, faults.count()))
        assert rows[: len(FAULTS)] == rows[len(FAULTS) :]

    @pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
    def test_an_endpoint_that_is_not_there(self, moto_bucket: Bucket, endpoint: str) -> None:
        first, second = (_read(moto_bucket, {"endpoint_url": endpoint, **more}) for more in ({}, UNTRANSLATED))
        assert isinstance(first, FailedImage)
        assert isinstance(second, FailedImage)
        assert f"cannot connect to {endpoint}" in first.reason
        assert (first.code, first.reason) == (second.code, second.reason)

    def test_no_key_can_pass_for_an_answer(self, moto_bucket: Bucket) -> None:
        key = "inner: Status { status: 503, <Code>SlowDown</Code> HttpError { kind: Timeout, a.jpg"
        (outcome,) = BlockReader({}, IMPATIENT).fetch([ImageRef(f"{moto_bucket.uri}/{key}")])
        assert isinstance(outcome, FailedImage)
        assert (outcome.code, outcome.reason) == ("not_found", "not found")


class TestRequests:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"key": "OTHER-ID", "secret": "hunter2"},
            {"key": "OTHER-ID", "secret": "hunter2", "token": "hunter3"},
            {"client_kwargs": {"aws_access_key_id": "OTHER-ID", "aws_secret_access_key": "hunter2"}},
            {"client_kwargs": {"region_name": "eu-west-3"}},
            {"anon": True},
            {"requester_pays": True},
            {"profile": "lab"},
            {"config_kwargs": {"s3": {"addressing_style": "path"}}},
        ],
        ids=lambda options: json.dumps(options),
    )
    def test_asked_alike_whatever_the_environment_says_besides(
        self, faulty_bucket: Bucket, faults: FaultProxy, options: dict[str, Any], monkeypatch: Any, tmp_path: Path
    ) -> None:
        faulty_bucket.put("a.jpg", b"bytes")
        profile = "[lab]\naws_access_key_id = LAB-ID\naws_secret_access_key = hunter2\naws_session_token = lab-token\n"
        (tmp_path / "credentials").write_text(profile)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        for name, value in _ENVIRONMENT_OF_OBSTORE.items():
            monkeypatch.setenv(name, value)
        asked = []
        for more in ({}, UNTRANSLATED):
            faults.clear()
            assert _reader(faulty_bucket, {**options, **more}).startswith("s3fs" if more else "obstore")
            outcome = _read(faulty_bucket, {**options, **more})
            assert isinstance(outcome, EncodedImage) or (options == {"anon": True} and outcome.code == "access_denied")
            (request,) = faults.requests
            asked.append((request.method, request.key, _who(request.headers)))
        assert asked[0] == asked[1]

    def test_virtual_hosts(self, moto_bucket: Bucket) -> None:
        options = {
            "endpoint_url": moto_bucket.server.endpoint.replace("127.0.0.1", "localhost"),
            "config_kwargs": {"s3": {"addressing_style": "virtual"}},
        }
        outcome = _read(moto_bucket, options)
        assert isinstance(outcome, FailedImage)
        port = moto_bucket.server.endpoint.rpartition(":")[2]
        assert _reader(moto_bucket, options) == "obstore"
        assert outcome.code == "not_found" or f"http://{moto_bucket.name}.localhost:{port}" in outcome.reason

    def test_a_role_of_a_container_is_asked_again_when_its_credentials_end(
        self, faulty_bucket: Bucket, faults: FaultProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        faulty_bucket.put("a.jpg", b"bytes")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        with _serve(_Credentials) as port:
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{port}/credentials")
            faults.clear()
            for _ in range(3):
                assert isinstance(_read(faulty_bucket, {}), EncodedImage)
        tokens = [request.headers["x-amz-security-token"] for request in faults.requests]
        assert len(set(tokens)) == 3, "they end within the ten minutes in which botocore must renew them"

    def test_a_web_identity(
        self, faulty_bucket: Bucket, faults: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        faulty_bucket.put("a.jpg", b"bytes")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        (tmp_path / "token").write_text("a-signed-claim")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/labeller")
        faults.clear()
        assert isinstance(_read(faulty_bucket, {}), EncodedImage)
        assert [request.method for request in faults.requests] == ["POST", "GET"]
        assert "Credential=ASIA" in faults.requests[1].headers["authorization"]
        assert faults.requests[1].headers["x-amz-security-token"]


_ENVIRONMENT_OF_OBSTORE = {
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
    "AWS_S3_EXPRESS": "true",
    "AWS_SKIP_SIGNATURE": "true",
    "AWS_REQUEST_PAYER": "true",
    "AWS_REGION": "nowhere-1",
    "AWS_ENDPOINT": "http://127.0.0.1:9",
}
"""What obstore reads there and botocore does not."""


def _who(headers: Mapping[str, str]) -> dict[str, str | None]:
    """Who signed for which region, with which token, who pays."""
    scope = re.search(r"Credential=([^/]+)/\d+/([^/]+)/s3/", headers.get("authorization", ""))
    return {
        "key": scope and scope[1],
        "region": scope and scope[2],
        "host": headers["host"],
        "token": headers.get("x-amz-security-token"),
        "payer": headers.get("x-amz-request-payer"),
    }


class TestRules:
    @pytest.mark.parametrize(
        ("options", "reader"),
        [
            ({}, "obstore"),
            ({"config_kwargs": {"read_timeout": 3}, "client_kwargs": {"region_name": "eu-west-3"}}, "obstore"),
            (UNTRANSLATED, "s3fs (storage option s3_additional_kwargs)"),
            ({"version_aware": True}, "s3fs (storage option version_aware)"),
            ({"config_kwargs": {"user_agent": "x"}}, "s3fs (storage option user_agent)"),
            ({"config_kwargs": {"signature_version": "s3"}}, "s3fs (signature version s3)"),
            ({"config_kwargs": {"proxies": {"http": "http://127.0.0.1:9"}}}, "s3fs (storage option proxies)"),
            (
                {"endpoint_url": None, "config_kwargs": {"s3": {"use_accelerate_endpoint": True}}},
                "s3fs (storage option use_accelerate_endpoint)",
            ),
        ],
        ids=str,
    )
    def test_what_has_no_translation_is_read_through_s3fs(
        self, moto_bucket: Bucket, options: dict[str, Any], reader: str
    ) -> None:
        assert _reader(moto_bucket, options) == reader

    def test_a_proxy(self, moto_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("no_proxy", "")
        assert _reader(moto_bucket, {}) == "s3fs (a proxy or a client certificate)"

    @pytest.mark.parametrize("name", ["photos--usw2-az1--x-s3", "arn:aws:s3:eu-west-1:123456789012:accesspoint"])
    def test_buckets_with_rules_of_their_own(self, moto_bucket: Bucket, name: str) -> None:
        fs = open_store(moto_bucket.uri, {}).fs
        assert reader_of(fs, f"{name}/a.jpg") == "s3fs (an access point or a directory bucket)"

    def test_other_filesystems_read_for_themselves(self, tmp_path: Path) -> None:
        assert reader_of(open_store(str(tmp_path), {}).fs, str(tmp_path)) == "fsspec"

    @pytest.mark.parametrize(
        ("endpoint", "region", "found"),
        [
            ("https://s3.eu-west-1.amazonaws.com", "eu-west-1", None),
            ("https://s3.eu-west-1.amazonaws.com", None, None),
            ("https://s3.eu-west-1.amazonaws.com", "us-west-2", "it lies in us-west-2; set AWS_DEFAULT_REGION"),
            ("https://store.example.org", "us-west-2", None),
        ],
    )
    def test_a_bucket_of_another_region(self, endpoint: str, region: str | None, found: str | None) -> None:
        fs = fsspec.filesystem("s3")
        assert fsspec.asyn.sync(fs.loop, _elsewhere, _Client(endpoint, region), "photos") == found

    def test_no_secret_is_shown(self, moto_bucket: Bucket) -> None:
        _store_of.cache_clear()
        moto_bucket.put("a.jpg", b"bytes")
        options = {"key": "KEY-ID", "secret": "hunter2", "token": "hunter3"}
        assert isinstance(_read(moto_bucket, options), EncodedImage)
        assert _store_of.cache_info().currsize == 1
        reader = BlockReader(options)
        assert "hunter" not in repr(reader) + str(reader)


class _Client:
    """AWS, which tells a bucket's region even to those who may not see it."""

    def __init__(self, endpoint: str, region: str | None) -> None:
        self.meta = type("Meta", (), {"endpoint_url": endpoint, "region_name": "eu-west-1"})
        self._headers = {} if region is None else {"x-amz-bucket-region": region}

    async def head_bucket(self, **_asked: str) -> Any:
        answer = {"Error": {"Code": "403"}, "ResponseMetadata": {"HTTPHeaders": self._headers}}
        raise botocore.exceptions.ClientError(answer, "HeadBucket")  # type: ignore[arg-type]


class TestCertificates:
    def test_a_bundle_of_ones_own(self, moto_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        certificate = _self_signed(tmp_path)
        with _serve(_Photo, certificate) as port:
            endpoint = {"endpoint_url": f"https://localhost:{port}"}
            for more in ({}, UNTRANSLATED):
                refused = _read(moto_bucket, {**endpoint, **more})
                assert isinstance(refused, FailedImage)
                assert refused.reason.startswith("TLS failed")
                trusting = {**endpoint, **more, "client_kwargs": {"verify": str(certificate)}}
                assert isinstance(_read(moto_bucket, trusting), EncodedImage)
            assert isinstance(_read(moto_bucket, {**endpoint, "client_kwargs": {"verify": False}}), EncodedImage)
            monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            assert isinstance(_read(moto_bucket, endpoint), EncodedImage)


class _Photo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"bytes")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        pass


class _Credentials(_Photo):
    """A container's credentials: new ones each time, and soon to end."""

    def do_GET(self) -> None:
        soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5)
        self.server.asked = getattr(self.server, "asked", 0) + 1  # type: ignore[attr-defined]
        self._answer(json.dumps({
            "AccessKeyId": "ROLE-ID", "SecretAccessKey": "hunter2", "Token": f"token-{self.server.asked}",  # type: ignore[attr-defined]
            "Expiration": soon.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }).encode())  # fmt: skip


@contextmanager
def _serve(handler: type[_Photo], certificate: Path | None = None) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _self_signed(folder: Path) -> Path:
    """A certificate of `localhost`, and beside it its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "localhost.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    path.with_suffix(".key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path
