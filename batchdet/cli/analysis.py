"""Doors to the questions asked of an output: audit, runs, sql, query. Knows no answers."""

from typing import Annotated

import typer

from batchdet.analysis.audit import audit_run
from batchdet.analysis.query import ask, print_views
from batchdet.analysis.relations import Dialect
from batchdet.analysis.runs import OpenRun, list_runs
from batchdet.cli.options import AsJson, OutputUri, StorageSettings, open_output
from batchdet.cli.output import print_json, print_json_rows, print_table, print_text
from batchdet.records import RunRow

RUN_COLUMNS = (
    "run_id",
    "status",
    "images",
    "labelled",
    "empty",
    "failed",
    "unchanged",
    "detections",
    "images/s",
    "model",
)


def audit(
    output: OutputUri,
    run: Annotated[str | None, typer.Option(metavar="RUN_ID", help="Which run; without it, the newest.")] = None,
    settings: StorageSettings = None,
    as_json: AsJson = False,
) -> None:
    """Check the coverage receipt of a run: every listed image ends in exactly one state. Exits 3 if not."""
    receipt = audit_run(open_output(output, settings), run)
    if as_json:
        print_json(receipt)
    else:
        rows = [("ok" if check.passed else "FAILED", check.name, check.finding) for check in receipt.checks]
        print_table(("result", "check", "finding"), rows)
    receipt.require_passed()


def runs(output: OutputUri, settings: StorageSettings = None, as_json: AsJson = False) -> None:
    """The runs of an output, newest first."""
    found = list_runs(open_output(output, settings))
    if as_json:
        print_json(found)
        return
    rows = [[run.run_id, *(_closed_cells(run) if isinstance(run, RunRow) else _open_cells(run))] for run in found]
    print_table(RUN_COLUMNS, rows)


def sql(
    output: OutputUri,
    dialect: Annotated[Dialect, typer.Option(help="Who reads it.")] = Dialect.DUCKDB,
    settings: StorageSettings = None,
    as_json: AsJson = False,
) -> None:
    """Print the view definitions: current_images, current_detections, current_candidates, failures, runs."""
    text = print_views(open_output(output, settings), dialect)
    if as_json:
        print_json({"dialect": dialect.value, "sql": text})
    else:
        print_text(text)


def query(
    output: OutputUri,
    statement: Annotated[str, typer.Argument(metavar="SQL", help="DuckDB SQL over the views of `batchdet sql`.")],
    settings: StorageSettings = None,
    as_json: AsJson = False,
) -> None:
    """Ask DuckDB over the views; it can read this output and nothing else."""
    with ask(open_output(output, settings), statement) as answer:
        if as_json:
            print_json_rows(answer.records())
        else:
            print_table(answer.columns, answer.rows)


def _closed_cells(run: RunRow) -> tuple[object, ...]:
    pace = round(run.images_per_second, 1)
    images = (run.num_listed, run.num_labelled, run.num_empty, run.num_failed, run.num_unchanged)
    return (run.status, *images, run.num_detections, pace, run.model)


def _open_cells(run: OpenRun) -> tuple[object, ...]:
    status = f"open: {run.shards_committed} of {run.shards_total} shards"
    return (status, run.num_listed, None, None, None, run.num_listed - run.num_planned, None, None, run.model)
