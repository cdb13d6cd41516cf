"""Doors to the main job: label and plan. Knows flags, not how a run goes.

torch and Ray are imported inside the commands: a mistake in the job is said before they have loaded.
"""

import math
import sys
from typing import Annotated, Any

import typer

from batchdet.cli.options import AsJson, RayAddress, Settings, StealLease, job_fields
from batchdet.cli.output import print_json, print_table
from batchdet.cli.runner import build_runner
from batchdet.config import JobConfig, PricesConfig, load_job, load_policy
from batchdet.progress import open_progress
from batchdet.records import PlanCounts
from batchdet.storage.filesystem import open_store
from batchdet.storage.ledger import Ledger

SUMMARY = (
    "status",
    "num_listed",
    "num_labelled",
    "num_empty",
    "num_failed",
    "num_unchanged",
    "num_deleted",
    "num_detections",
    "images_per_second",
)

TELLING_IMAGES = 1000
"""Images of a run whose pace tells something of the next."""

JobFile = Annotated[str | None, typer.Argument(metavar="[JOB.yaml]", help="The job; flags override its fields.")]
Source = Annotated[str | None, typer.Option(metavar="URI", help="Prefix, glob or manifest of images.")]
Output = Annotated[str | None, typer.Option(metavar="URI", help="Folder for the Parquet tables.")]
Policy = Annotated[
    str | None,
    typer.Option("--policy", metavar="FILE", help="The policy as `batchdet calibrate` writes it; replaces the job's."),
]
Model = Annotated[str | None, typer.Option(metavar="REF", help="torchvision:NAME[@WEIGHTS], a registry or a file.")]

NoDelete = Annotated[
    bool,
    typer.Option(
        "--no-delete", help="Do not take images for deleted that are no longer listed: the listing is partial."
    ),
]


def label(
    job_file: JobFile = None,
    source: Source = None,
    output: Output = None,
    model: Model = None,
    policy: Policy = None,
    settings: Settings = None,
    ray: RayAddress = "auto",
    new_run: Annotated[bool, typer.Option("--new-run", help="Close an open run as partial, do not resume it.")] = False,
    no_delete: NoDelete = False,
    max_hours: Annotated[
        float | None,
        typer.Option(
            "--max-hours",
            help="Begin no shard after so many hours; the run ends as partial, and the next label goes on with it.",
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Show where the time goes, stage by stage, and keep it under OUTPUT/_profiles/RUN_ID/: summary.txt, "
            "and trace.json for Perfetto or chrome://tracing.",
        ),
    ] = False,
    steal_lease: StealLease = False,
    as_json: AsJson = False,
) -> None:
    """Label every new, changed or failed image of the source; again after a crash, it resumes."""
    flags = {"source": source, "output": output, "model.reference": model, "limits.max_hours": max_hours}
    job = _job(job_file, flags | _deletes(no_delete), policy, settings)
    from batchdet.run import Manner, label_bucket

    manner = Manner("give_up" if new_run else "resume", profile, steal_lease)

    with open_progress(sys.stderr) as progress:
        runner = build_runner(ray, job.cluster)
        row = label_bucket(job, runner, progress, manner)
    if as_json:
        print_json(row)
    else:
        print_table(("run", row.run_id), [(name, getattr(row, name)) for name in SUMMARY])


def plan(
    job_file: JobFile = None,
    source: Source = None,
    output: Output = None,
    model: Model = None,
    policy: Policy = None,
    settings: Settings = None,
    no_delete: NoDelete = False,
    as_json: AsJson = False,
) -> None:
    """Show what label would do with each image, the bytes it would read, and the time and dollars it would take.

    The classes new, changed, failed_retry, stale and unchanged add up to listed. stale: labelled by another model or
    setting of it. quarantined: of the unchanged, those that failed too often. deleted: known, and no longer listed.
    The time is that of the last run's pace, the dollars those of the prices given (`--set prices.per_hour=…`).
    undated: images listed with neither etag nor size nor time (a manifest may have none). Once labelled they count as
    unchanged, whatever becomes of them.
    """
    flags = {"source": source, "output": output, "model.reference": model}
    job = _job(job_file, flags | _deletes(no_delete), policy, settings)
    from batchdet.run import plan_bucket

    with open_progress(sys.stderr) as progress:
        counts = plan_bucket(job, progress)
    found = _estimate(job, counts)
    if as_json:
        print_json(found)
    else:
        print_table(("images", "count"), found.items())


def _deletes(no_delete: bool) -> dict[str, Any]:
    return {"plan.delete_missing": False} if no_delete else {}


def _estimate(job: JobConfig, counts: PlanCounts) -> dict[str, Any]:
    """The counts by class, and what labelling them would take."""
    pace = _last_pace(job)
    seconds = counts.num_planned / pace if pace else None
    per_shard = job.plan.shard_images(counts.num_planned + counts.num_deleted)
    parts = (counts.num_planned - counts.num_stale, counts.num_stale, counts.num_deleted)
    return {
        "listed": counts.num_listed,
        "new": counts.num_new,
        "changed": counts.num_changed,
        "failed_retry": counts.num_failed_retry,
        "stale": counts.num_stale,
        "unchanged": counts.num_unchanged,
        "quarantined": counts.num_quarantined,
        "deleted": counts.num_deleted,
        "undated": counts.num_undated,
        "to_label": counts.num_planned,
        "bytes": counts.bytes_planned,
        "gets": counts.num_planned,
        "shards": sum(math.ceil(images / per_shard) for images in parts),
        "estimated_seconds": None if seconds is None else round(seconds, 1),
        "estimated_hours": None if seconds is None else round(seconds / 3600, 2),
        "estimated_dollars": _dollars(job.prices, counts, seconds),
    }


def _dollars(prices: PricesConfig, counts: PlanCounts, seconds: float | None) -> float | None:
    """The sum of what has a price; None where nothing has one, or a price by the hour meets a run of unknown length."""
    if prices.per_hour is not None and seconds is None:
        return None
    amounts = (
        (prices.per_hour, (seconds or 0.0) / 3600),
        (prices.per_1000_gets, counts.num_planned / 1000),
        (prices.per_gib, counts.bytes_planned / 2**30),
    )
    priced = [price * amount for price, amount in amounts if price is not None]
    return round(sum(priced), 2) if priced else None


def _job(job_file: str | None, flags: dict[str, Any], policy: str | None, settings: list[str] | None) -> JobConfig:
    if policy is not None:
        flags = flags | {"policy": load_policy(policy).model_dump(exclude_unset=True)}
    return load_job(job_file, job_fields(flags, settings))


def _last_pace(job: JobConfig) -> float | None:
    """Images per second of the newest complete run that labelled enough to tell, or else of the largest."""
    rows = Ledger(open_store(job.output, job.storage.output)).complete_runs()
    timed = [(row.num_labelled + row.num_failed, row.images_per_second) for row in rows if row.images_per_second > 0]
    large = [timing for timing in timed if timing[0] >= TELLING_IMAGES]
    telling = large or sorted(timed, reverse=True)
    return telling[0][1] if telling else None
