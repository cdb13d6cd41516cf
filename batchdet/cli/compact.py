"""Door to rewriting history into few large files. Knows flags, not how rows are rewritten."""

import sys
from datetime import timedelta
from typing import Annotated

import typer

from batchdet import compaction
from batchdet.cli.options import AsJson, OutputUri, StealLease, StorageSettings, open_output
from batchdet.cli.output import print_json, print_table
from batchdet.compaction import History
from batchdet.progress import open_progress
from batchdet.rewriting import FILE_BYTES
from batchdet.storage.lease import Terms, held
from batchdet.storage.removal import Removal


def compact(
    output: OutputUri,
    history: Annotated[
        History, typer.Option(help="The latest row of each image that is not deleted, or every row of every run.")
    ] = "current",
    file_mib: Annotated[int, typer.Option("--file-mib", min=1, metavar="MIB", help="Aim at files so large.")] = (
        FILE_BYTES >> 20
    ),
    remove: Annotated[
        bool,
        typer.Option(
            "--remove",
            help="Take runs that hold nothing else out of the views, and delete the files of those that have been out "
            "for --grace-hours; run again to delete the rest.",
        ),
    ] = False,
    grace_hours: Annotated[
        float, typer.Option("--grace-hours", min=0.0, metavar="H", help="So long readers may go on with old files.")
    ] = 24.0,
    settings: StorageSettings = None,
    steal_lease: StealLease = False,
    as_json: AsJson = False,
) -> None:
    """Rewrite committed rows into few large files, sorted by image; the views answer as before, at every moment."""
    store = open_output(output, settings)
    terms = Terms(steal=steal_lease)
    with open_progress(sys.stderr) as progress, held(store, "compact", terms, progress.log):
        done = compaction.compact(store, history, progress.log, file_mib << 20)
        gone = Removal((), ())
        if remove:
            gone = compaction.remove(store, done.superseded, timedelta(hours=grace_hours))
    superseded = () if remove else done.superseded
    if as_json:
        found = {"runs": done.runs, "superseded": superseded, "waiting": gone.waiting, "deleted": gone.deleted}
        print_json(found)
        return
    rows = [("new", row.run_id) for row in done.runs]
    for state, run_ids in (("superseded", superseded), ("waiting", gone.waiting), ("deleted", gone.deleted)):
        rows += [(state, run_id) for run_id in run_ids]
    print_table(("state", "run"), rows)
