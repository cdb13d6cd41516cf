"""S3 servers and buckets for tests: moto's in a process of its own, and what a client needs to reach one."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import botocore.config

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class S3Server:
    """A running S3 endpoint."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def env(self) -> dict[str, str]:
        """Environment from which fsspec, boto, pyarrow and DuckDB's credential chain reach it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self) -> Any:
        """A boto3 client: the oracle, nothing of ours."""
        return _client(self.endpoint, self.access_key, self.secret_key)

    def behind(self, endpoint: str) -> "S3Server":
        """The same server, seen through a proxy."""
        return replace(self, endpoint=endpoint)


@cache
def _client(endpoint: str, access_key: str, secret_key: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=botocore.config.Config(s3={"addressing_style": "path"}),
    )


@dataclass(frozen=True)
class Bucket:
    """A bucket of one test's own."""

    server: S3Server
    name: str

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    @property
    def env(self) -> dict[str, str]:
        return self.server.env

    @property
    def client(self) -> Any:
        return self.server.client()

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def put_all(self, objects: Mapping[str, bytes]) -> None:
        for key, data in objects.items():
            self.put(key, data)

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def behind(self, endpoint: str) -> "Bucket":
        """The same bucket, seen through a proxy."""
        return Bucket(self.server.behind(endpoint), self.name)


def new_bucket(server: S3Server) -> Bucket:
    """A fresh bucket with a name of its own."""
    bucket = Bucket(server, f"test-{uuid.uuid4().hex[:16]}")
    bucket.client.create_bucket(Bucket=bucket.name)
    return bucket


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """moto's S3 on a free port. Takes any credentials; keeps objects in memory."""
    command = [sys.executable, "-m", "tests.servers.moto_process"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"{' '.join(command)} ended before it served: exit {process.wait()}")
        try:
            yield S3Server(f"http://127.0.0.1:{port}", "moto-access", "moto-hush-hush")
        finally:
            process.kill()
