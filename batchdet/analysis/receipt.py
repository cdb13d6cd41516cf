"""The receipt of an audit: named checks, their findings, and recounted numbers. Knows no files."""

from dataclasses import dataclass, field

from batchdet.errors import AuditError

CHECKS = {
    "run is complete": "the run has its row in runs/ and the row says complete",
    "shard files are the plan's": "images/ and detections/ hold one file per planned shard and nothing else",
    "files carry the run's stamp": "schema version, run, model and policy in the metadata of every file",
    "columns are the schema's": "names and types of every file",
    "every image once": "each image of the plan has one row, and no other image has any",
    "statuses are sound": "labelled images have counts, failed ones a stage and a code",
    "detections belong to labelled images": "of the same shard",
    "counts are the detections'": "num_candidates and num_detections of each image equal its stored and accepted rows",
    "detections are in order": "detection_index counts from 0 while scores fall",
    "listed = labelled + failed + unchanged": "law 1, from the plan and the recounted files",
    "runs row equals the recount": "the numbers of the run's row",
}
"""Every check by name, with what it asserts."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the receipt.

    Attributes:
        finding: what was counted, or what is wrong, with a file and a sample image.
    """

    name: str
    passed: bool
    finding: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """The outcome of an audit: recounted, not read from the run's row."""

    run_id: str
    passed: bool
    num_listed: int
    num_labelled: int
    num_empty: int
    num_failed: int
    num_unchanged: int
    num_detections: int
    num_candidates: int
    open_shards: tuple[int, ...]
    checks: tuple[Check, ...]

    def require_passed(self) -> None:
        """Do nothing if every check passed.

        Raises:
            AuditError: one did not; names the first, with its finding.
        """
        wrong = [check for check in self.checks if not check.passed]
        if wrong:
            more = f" ({len(wrong) - 1} more checks failed)" if len(wrong) > 1 else ""
            raise AuditError(f"run {self.run_id}: {wrong[0].name}: {wrong[0].finding}{more}")


@dataclass(slots=True)
class Findings:
    """Counts and complaints while shards go by.

    Attributes:
        last_uri: greatest image_uri of the shards so far, in UTF-8 byte order.
    """

    first: dict[str, str] = field(default_factory=dict)
    number: dict[str, int] = field(default_factory=dict)
    num_labelled: int = 0
    num_empty: int = 0
    num_failed: int = 0
    num_detections: int = 0
    num_candidates: int = 0
    last_uri: str | None = None

    def complain(self, check: str, finding: str) -> None:
        """A check does not hold; of each the first finding and their number are kept."""
        self.first.setdefault(check, finding)
        self.number[check] = self.number.get(check, 0) + 1

    def checks(self) -> tuple[Check, ...]:
        """Every check, in order."""
        return tuple(Check(name, name not in self.first, self._finding(name)) for name in CHECKS)

    def _finding(self, name: str) -> str:
        if name not in self.first:
            return CHECKS[name]
        more = self.number[name] - 1
        return self.first[name] + (f" (and {more} more)" if more else "")
