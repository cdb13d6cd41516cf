"""Flags that several commands share, and how their text becomes values. Knows no command."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
import yaml

from batchdet.config import StorageConfig, load_job
from batchdet.errors import ConfigError, OutputError, StorageError
from batchdet.storage.filesystem import Store, open_store

OutputUri = Annotated[str, typer.Argument(metavar="OUTPUT", help="The output folder of `batchdet label`.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the job, as `policy.score_threshold=0.6`; repeat."),
]
RayAddress = Annotated[
    str, typer.Option(metavar="auto|local|off|ADDRESS", help="A running cluster or one of its own; off: no Ray.")
]
StealLease = Annotated[
    bool, typer.Option("--steal-lease", help="Take the output from whoever holds it; make sure that it is dead.")
]
StorageSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="As for label: `storage.output.endpoint_url=https://…`; repeat."),
]


def read_settings(settings: list[str] | None) -> dict[str, Any]:
    """`path.to.field=value` as field to value, the value read as YAML.

    Raises:
        ConfigError: no `=`, or not YAML.
    """
    values: dict[str, Any] = {}
    for text in settings or ():
        field, equals, value = text.partition("=")
        if not equals or not field.strip(".") or ".." in field:
            raise ConfigError(f"--set {text}: expected path.to.field=value")
        try:
            values[field] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {field}: {value!r} is not a YAML value") from error
    return values


def job_fields(flags: Mapping[str, Any], settings: list[str] | None) -> dict[str, Any]:
    """Fields of a job by dotted path: those that flags name and were given, and the settings over them.

    Raises:
        ConfigError: a setting has no `=`, or is not YAML.
    """
    return {field: value for field, value in flags.items() if value not in (None, [])} | read_settings(settings)


def storage_config(settings: list[str] | None, place: str = "storage.") -> StorageConfig:
    """The fsspec options of a command that reads no job.

    Raises:
        ConfigError: a setting is not one of `place`, or holds a secret.
    """
    values = read_settings(settings)
    for field in values:
        if not field.startswith(place):
            raise ConfigError(f"--set {field}: only {place}* matters here")
    return load_job(None, {"source": "-", "output": "-", "model.reference": "-", **values}).storage


def open_output(uri: str, settings: list[str] | None) -> Store:
    """The output a command asks about.

    Raises:
        ConfigError: a setting is not one of `storage.output`.
        OutputError: no filesystem serves the URI.
    """
    options = storage_config(settings, "storage.output.").output
    try:
        return open_store(uri, options)
    except StorageError as error:
        raise OutputError(f"output {error}") from error
