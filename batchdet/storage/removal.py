"""Runs go out of an output: first out of sight, their files later. Knows not why.

_removed/<run_id>.json   written before a run's row is deleted; gone when its last file is

A run's plan goes before its row, since a plan without a row is an open run. Whoever began to read before still finds
every file until the grace is over.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from batchdet.errors import OutputError
from batchdet.storage.filesystem import Store
from batchdet.storage.layout import PROFILES, REMOVED
from batchdet.storage.plan import PLANS, RUN_ID, plan_name


@dataclass(frozen=True, slots=True)
class Removal:
    """What a sweep did.

    Attributes:
        deleted: runs whose last file is gone.
        waiting: runs out of sight whose files wait for the grace to end.
    """

    deleted: tuple[str, ...]
    waiting: tuple[str, ...]


def retire(output: Store, run_ids: Iterable[str], now: datetime) -> None:
    """Take runs out of sight, the oldest first: an image deleted since does not come back in between.

    Raises:
        StorageError: the output cannot be written; the same call goes on.
    """
    for run_id in sorted(run_ids):
        note = {"run_id": run_id, "removed_at": now.isoformat()}
        output.write_bytes(_note_name(run_id), json.dumps(note).encode())
        output.delete(plan_name(run_id))
        output.delete(_row_name(run_id))


def sweep(output: Store, now: datetime, grace: timedelta) -> Removal:
    """End what `retire` began, and delete the files of runs that have been out of sight for the grace.

    Raises:
        OutputError: a note is damaged.
        StorageError: a file cannot be deleted; the same call goes on.
    """
    deleted, waiting = [], []
    for run_id, removed_at in list(_notes(output)):
        if output.exists(_row_name(run_id)) or output.exists(plan_name(run_id)):
            retire(output, [run_id], now)
            removed_at = now
        if now - removed_at < grace:
            waiting.append(run_id)
            continue
        for folder in (*(f"{table}/run_id={run_id}" for table in ("images", "detections")), f"{PLANS}/{run_id}"):
            _delete_files(output, folder)
        _delete_files(output, f"{PROFILES}/{run_id}")
        output.delete(_note_name(run_id))
        deleted.append(run_id)
    return Removal(tuple(deleted), tuple(waiting))


def _delete_files(output: Store, folder: str) -> None:
    for name in output.list(folder):
        output.delete(name)


def _notes(output: Store) -> Iterator[tuple[str, datetime]]:
    for name in output.list(REMOVED):
        run_id = name.rsplit("/", 1)[-1].removesuffix(".json")
        if RUN_ID.fullmatch(run_id):
            try:
                yield run_id, datetime.fromisoformat(json.loads(output.read_bytes(name))["removed_at"])
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(
                    f"{output.child_uri(name)} is damaged ({error}); write it again or delete it"
                ) from error


def _note_name(run_id: str) -> str:
    return f"{REMOVED}/{run_id}.json"


def _row_name(run_id: str) -> str:
    return f"runs/{run_id}.parquet"
