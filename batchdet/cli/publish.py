"""Door to publication: an output's complete runs as Delta or Iceberg tables. Knows flags, no format."""

import sys
from typing import Annotated, Any, Literal

import typer

from batchdet.cli.options import AsJson, OutputUri, open_output, read_settings
from batchdet.cli.output import print_json, print_table
from batchdet.job_file import load_config
from batchdet.outlets import PublishConfig
from batchdet.progress import open_progress
from batchdet.publishing import publish_runs
from batchdet.storage.lease import held

_PLACE = "publish."


def publish(
    output: OutputUri,
    format: Annotated[Literal["delta", "iceberg"], typer.Option("--format", help="Of the tables.")],  # noqa: A002
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="As for label: `publish.catalog.uri=https://…`, `storage.output.endpoint_url=https://…`; repeat.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Register the files of complete runs in tables images, detections and runs; again, it adds what is new."""
    mine = [text for text in settings or () if text.startswith(_PLACE)]
    others = [text for text in settings or () if not text.startswith(_PLACE)]
    fields: dict[str, Any] = {name.removeprefix(_PLACE): value for name, value in read_settings(mine).items()}
    wanted = load_config(PublishConfig, None, {**fields, "format": format})
    store = open_output(output, others)
    with open_progress(sys.stderr) as progress, held(store, "publish", tell=progress.log):
        found = publish_runs(store, wanted)
    if as_json:
        print_json(found)
    else:
        rows = [(each.table, each.version, each.files_added, each.files_removed) for each in found]
        print_table(("table", "version", "files_added", "files_removed"), rows)
