"""The runs of an output, closed and open. Knows no images."""

from dataclasses import dataclass

from batchdet.errors import AccessDeniedError, OutputError
from batchdet.records import RunRow
from batchdet.storage.filesystem import Store
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import RunPlan


@dataclass(frozen=True, slots=True)
class History:
    """What has happened to an output; at least one run.

    Attributes:
        closed: rows of closed runs, newest first.
        open: plans of open runs, newest first.
    """

    closed: list[RunRow]
    open: list[RunPlan]

    @property
    def run_ids(self) -> list[str]:
        """Every run, newest first."""
        return sorted([row.run_id for row in self.closed] + [plan.run_id for plan in self.open], reverse=True)


def read_history(output: Store) -> History:
    """The runs of an output.

    Raises:
        OutputError: there is none, or the output may not be listed.
        SchemaVersionError: another schema version wrote it.
        StorageError: it cannot be read.
    """
    ledger = Ledger(output)
    try:
        history = History(ledger.run_rows(), ledger.open_runs())
    except AccessDeniedError as error:
        raise OutputError(f"output {error}") from error
    if not history.run_ids:
        raise OutputError(f"{output.uri}: no runs here; is this the --output of a `batchdet label`?")
    return history
