"""The runs of an output, newest first, closed and open. Knows no images."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from batchdet.errors import OutputError
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
        SchemaVersionError: another schema version wrote it.
    """
    ledger = Ledger(output)
    runs: list[Run] = [*ledger.run_rows(), *(_describe(ledger, plan) for plan in ledger.open_runs())]
    if not runs:
        raise OutputError(f"{output.uri}: no runs here; is this the --output of a `batchdet label`?")
    return sorted(runs, key=lambda run: run.run_id, reverse=True)


def as_record(run: Run) -> dict[str, Any]:
    """A run as column name to value."""
    return asdict(run)


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
        num_committed=plan.images_in(committed),
        shards_committed=len(committed),
        shards_total=plan.num_shards,
    )
