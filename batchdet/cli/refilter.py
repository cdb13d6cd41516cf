"""Door to another policy over stored candidates. Knows flags, not how candidates are judged."""

import sys
from typing import Annotated, Any

import typer

from batchdet import refiltering
from batchdet.cli.label import SUMMARY
from batchdet.cli.options import AsJson, OutputUri, StealLease, open_output, read_settings
from batchdet.cli.output import print_json, print_table
from batchdet.config import PolicyConfig, PolicyFile, load_policy
from batchdet.errors import ConfigError
from batchdet.job_file import load_config
from batchdet.progress import open_progress
from batchdet.storage.filesystem import Store
from batchdet.storage.lease import Terms, held


def refilter(
    output: OutputUri,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="FILE", help="The policy as `batchdet calibrate` writes it.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="A field of the policy, as `policy.score_threshold=0.6`, over that of the file or else of the newest "
            "run; or one of storage.output; repeat.",
        ),
    ] = None,
    steal_lease: StealLease = False,
    as_json: AsJson = False,
) -> None:
    """Accept by another policy what is stored already: a new run, without a model and without a GPU."""
    fields = {field for field in read_settings(settings) if field.startswith("policy.")}
    if policy is None and not fields:
        raise ConfigError("no policy given: name a file with --policy, or fields with --set policy.…")
    given = [text for text in settings or () if text.partition("=")[0] in fields]
    store = open_output(output, [text for text in settings or () if text not in given])
    wanted = _policy(store, policy, read_settings(given))
    terms = Terms(steal=steal_lease)
    with open_progress(sys.stderr) as progress, held(store, "refilter", terms, progress.log):
        row = refiltering.refilter(store, wanted, progress.log)
    if as_json:
        print_json(row)
    else:
        print_table(("run", row.run_id), [(name, getattr(row, name)) for name in SUMMARY])


def _policy(output: Store, file: str | None, fields: dict[str, Any]) -> PolicyConfig:
    base = load_policy(file) if file is not None else refiltering.newest_policy(output)
    given = {f"policy.{name}": value for name, value in base.model_dump().items()} | fields
    return load_config(PolicyFile, None, given).policy
