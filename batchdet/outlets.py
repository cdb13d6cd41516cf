"""Where a run is told beside its output: tables of other formats, a webhook. Knows names and ranges only."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from batchdet.fields import Section, Text, is_secret_url, refuse_secrets


class PublishConfig(Section):
    """Committed files as tables of a format that has transactions and time travel."""

    format: Literal["delta", "iceberg"]
    """`delta`: logs beside the files, in the output; `iceberg`: metadata in `uri`, tables in a catalog."""
    uri: str | None = None
    """Iceberg: folder for the tables' metadata; null: `OUTPUT/_iceberg`. Delta's log lies where the files are."""
    catalog: dict[str, str] = Field(default_factory=dict)
    """Iceberg: properties of pyiceberg's catalog (`type`, `uri`, …); secrets belong in the environment, as
    `PYICEBERG_CATALOG__<NAME>__<PROPERTY>`."""
    catalog_name: Text = "default"
    """Iceberg: the catalog's name, as pyiceberg's configuration has it."""
    namespace: str = Field(default="batchdet", pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")
    """Iceberg: namespace of the tables `images`, `detections` and `runs`; an output needs one of its own."""

    @model_validator(mode="after")
    def _refuse_secrets(self) -> "PublishConfig":
        refuse_secrets("publish", {"catalog": self.catalog, "uri": self.uri or ""})
        if self.format == "delta" and (self.uri or self.catalog):
            raise ValueError("publish: delta takes neither uri nor catalog: its log lies beside the files")
        return self


class NotifyConfig(Section):
    """Who is told how a night went, by a webhook."""

    url_env: str | None = Field(default=None, repr=False)
    """Name of the environment variable that holds the webhook's URL."""
    url: str | None = Field(default=None, repr=False)
    """The URL itself, where it holds no secret; those of Slack do."""
    format: Literal["slack", "json"] = "slack"
    """`slack`: text and blocks; `json`: the night's summary as it is stored."""
    timeout_s: Annotated[float, Field(gt=0.0, le=60.0)] = 10.0
    """Seconds to connect, and again to answer; tried twice at most."""

    @model_validator(mode="after")
    def _refuse_secrets(self) -> "NotifyConfig":
        if (self.url is None) == (self.url_env is None):
            raise ValueError("notify: give one of url_env and url")
        # Said without the value, as pydantic would not: it may be the secret.
        if self.url_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.url_env):
            raise ValueError("notify.url_env is the name of an environment variable, not the URL")
        if self.url is not None and not re.match(r"https?://[^/\s]+", self.url):
            raise ValueError("notify.url: expected http:// or https://")
        if self.url is not None and is_secret_url(self.url):
            raise ValueError("notify.url holds a secret; put it in the environment and name that with notify.url_env")
        return self
