"""The list of runs, newest first, open ones with how far they are. Knows no images."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from batchdet.analysis.history import read_history
from batchdet.records import RunRow
from batchdet.storage.filesystem import Store
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import RunPlan


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that was planned and not closed.

    Attributes:
        started_at: timezone-aware UTC.
        num_planned: images of its plan.
        num_committed: images of its committed shards.
    """

    run_id: str
    status: Literal["open"]
    started_at: datetime
    source: str
    model: str
    num_listed: int
    num_planned: int
    num_committed: int
    shards_committed: int
    shards_total: int


Run = RunRow | OpenRun


def list_runs(output: Store) -> list[Run]:
    """Every run of an output, newest first.

    Raises:
        OutputError: there is none.
        StorageError: the output cannot be read.
    """
    ledger = Ledger(output)
    history = read_history(output)
    runs: list[Run] = [*history.closed, *(_describe(ledger, plan) for plan in history.open)]
    return sorted(runs, key=lambda run: run.run_id, reverse=True)


def _describe(ledger: Ledger, plan: RunPlan) -> OpenRun:
    committed = ledger.committed(plan.run_id)
    return OpenRun(
        run_id=plan.run_id,
        status="open",
        started_at=plan.header.started_at,
        source=plan.header.source,
        model=plan.header.model.reference,
        num_listed=plan.counts.num_listed,
        num_planned=plan.counts.num_planned,
        num_committed=plan.images_to_label(committed),
        shards_committed=len(committed),
        shards_total=plan.num_shards,
    )
