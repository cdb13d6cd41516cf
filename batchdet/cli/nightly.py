"""Door to a night. Knows flags, not how a night goes."""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from batchdet.cli.options import AsJson, RayAddress, Settings, StealLease, read_settings
from batchdet.cli.output import print_json, print_table
from batchdet.cli.runner import build_runner
from batchdet.errors import NightError
from batchdet.progress import open_progress


def nightly(
    nightly_file: Annotated[str, typer.Argument(metavar="NIGHTLY.yaml", help="The night's job.")],
    night: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which night to begin or go on with; the date in UTC if not given."),
    ] = None,
    settings: Settings = None,
    ray: RayAddress = "auto",
    steal_lease: StealLease = False,
    as_json: AsJson = False,
) -> None:
    """Label what is new, audit it, tell what changed, and when it is due retrain, promote and label again.

    The same night begun again goes on where it stopped, also where its hours ended it. Exit codes: 0 all is well; 1
    labelling or training did not end, the same command goes on; 3 an audit failed, an alarm was raised or a student was
    not promoted; 75 another run holds the output.
    """
    from batchdet.nightly.job import load_nightly

    config = load_nightly(nightly_file, read_settings(settings))
    from batchdet.cli.retrain import build_place
    from batchdet.nightly.night import Places, run_night
    from batchdet.retraining import retrain

    name = night or datetime.now(UTC).date().isoformat()
    with open_progress(sys.stderr) as progress:
        runner, place = build_runner(ray, config.job.cluster), build_place(ray)
        places = Places(runner, lambda train: retrain(train, place, runner, progress))
        summary = run_night(config, name, places, progress, steal_lease=steal_lease)
    if as_json:
        print_json(summary)
    else:
        print_table(("night", name), _outcomes(summary["steps"]))
    if summary["exit_code"]:
        raise NightError(f"night {name}: {summary['error']}", summary["exit_code"])


def _outcomes(steps: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What came of each step; the error that ended the night is said by who raises it."""
    from batchdet.nightly.account import findings

    skipped = [(step, f"skipped: {found['skipped']}") for step, found in steps.items() if "skipped" in found]
    order = list(steps)
    return sorted([*skipped, *findings(steps)], key=lambda row: order.index(row[0]))
