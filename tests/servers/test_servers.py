"""The servers the other tests stand on do what they say, seen by clients that are not ours."""

import botocore.exceptions
import pytest

from tests.servers.faults import Fault, FaultProxy, fault_proxy
from tests.servers.s3 import Bucket, S3Server

NASTY_KEY = "a b/#1 100%25 ü?.jpg"


def test_bucket_keeps_what_was_put(bucket: Bucket) -> None:
    bucket.put(NASTY_KEY, b"bytes")
    assert bucket.get(NASTY_KEY) == b"bytes"
    assert bucket.keys() == [NASTY_KEY]


def test_signatures_hold_through_the_proxy(bucket: Bucket) -> None:
    with fault_proxy(bucket.server.endpoint) as proxy:
        seen = bucket.behind(proxy.endpoint)
        seen.put(NASTY_KEY, b"bytes" * 1000)
        assert seen.get(NASTY_KEY) == b"bytes" * 1000
        assert proxy.count(NASTY_KEY, "GET") == 1
        assert proxy.count(NASTY_KEY, "PUT") == 1


@pytest.mark.ceph
def test_ceph_checks_signatures(ceph: S3Server) -> None:
    wrong = S3Server(ceph.endpoint, ceph.access_key, "not-the-secret")
    with pytest.raises(botocore.exceptions.ClientError, match="SignatureDoesNotMatch"):
        wrong.client().list_buckets()


def test_faults_hit_as_often_as_asked(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    faulty_bucket.put("a.jpg", b"x")
    faults.add(Fault("a.jpg", "status", times=1, method="GET"))
    assert faulty_bucket.get("a.jpg") == b"x", "boto retries 503 by itself"
    assert faults.count("a.jpg", "GET") == 2


@pytest.mark.parametrize("kind", ["truncate", "reset_midway"])
def test_cut_bodies_are_cut(faulty_bucket: Bucket, faults: FaultProxy, kind: str) -> None:
    faulty_bucket.put("a.jpg", b"x" * 1000)
    faults.add(Fault("a.jpg", kind, times=1, method="GET"))  # type: ignore[arg-type]
    with pytest.raises((botocore.exceptions.BotoCoreError, botocore.exceptions.HTTPClientError)):
        faulty_bucket.get("a.jpg")
