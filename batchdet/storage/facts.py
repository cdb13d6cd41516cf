"""What of the storage works: credentials, the source, the output. Knows no image and shows no secret."""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from batchdet.config import EXTENSIONS
from batchdet.errors import SourceError, StorageError
from batchdet.records import Fact
from batchdet.storage.filesystem import open_store
from batchdet.storage.foreign import mapped_errors
from batchdet.storage.listing import list_images
from batchdet.storage.objects import reader_of

_CLOUDS = {
    "gs://": ("gcsfs", "gcs", ("GOOGLE_APPLICATION_CREDENTIALS",)),
    "az://": ("adlfs", "azure", ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME")),
}
"""Scheme to package, extra, and the variables that hold credentials."""


def storage_facts() -> list[Fact]:
    """Whether credentials are there, by where they come from, never what they are."""
    return [_aws(), *(_cloud(scheme) for scheme in _CLOUDS)]


def source_fact(uri: str, options: Mapping[str, Any]) -> Fact:
    """Whether the source can be listed: its first page is; and what its images will be read through."""
    try:
        page = next(list_images(uri, options, EXTENSIONS))
        first = page["image_uri"][0].as_py()
        store = open_store(first, options)
        with mapped_errors(first):
            reader = reader_of(store.fs, store.root)
    except (SourceError, StorageError) as error:
        return Fact("source", "fail", str(error))
    return Fact("source", "ok", f"{uri}: {page.num_rows} images or more, read through {reader}")


def output_fact(uri: str, options: Mapping[str, Any]) -> Fact:
    """Whether the output can be written."""
    try:
        open_store(uri, options).probe_writable()
    except StorageError as error:
        return Fact("output", "fail", str(error))
    return Fact("output", "ok", f"{uri}: can be written")


def _aws() -> Fact:
    from botocore.session import Session  # slow, and only asked here

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    place = f" for {endpoint}" if endpoint else ""
    found = Session().get_credentials()
    if found is None:
        return Fact("s3:// credentials", "warn", f"none found{place}; needed unless the bucket is public")
    return Fact("s3:// credentials", "ok", f"from {found.method}{place}")


def _cloud(scheme: str) -> Fact:
    package, extra, variables = _CLOUDS[scheme]
    name = f"{scheme} credentials"
    if importlib.util.find_spec(package) is None:
        return Fact(name, "ok", f'not installed; pip install "batchdet[{extra}]" where it is needed')
    given = [variable for variable in variables if os.environ.get(variable)]
    if given:
        return Fact(name, "ok", f"from {', '.join(given)}")
    return Fact(name, "warn", f"none in {', '.join(variables)}")
