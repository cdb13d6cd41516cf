"""The receipt of an audit: named checks, their findings, and recounted numbers. Knows no files."""

from dataclasses import dataclass, field

from batchdet.errors import AuditError

CHECKS = {
    "run is complete": "the run has its row in runs/ and the row says complete",
    "the plan is whole": "every committed shard can be read from the plan's manifests",
    "shard files are the plan's": "images/ and detections/ hold one file per planned shard and nothing else",
    "files carry the run's stamp": "schema version, run, model and policy in the metadata of every file",
    "columns are the schema's": "names and types of every file",
    "every image once": "each image of the plan has one row, and no other image has any",
    "images are in order": "rows of images/ ascend by image_uri",
    "listed facts are the plan's": "etag, size_bytes and last_modified of each image are those of the plan",
    "rows carry their shard_id": "in both tables",
    "statuses are sound": "labelled images have counts, size, digest and decoder, failed ones a stage, a code and a "
    "reason, deleted ones none of these, and none has what belongs to another",
    "detections belong to labelled images": "of the same shard",
    "counts are the detections'": "num_candidates and num_detections of each image equal its stored and accepted rows",
    "detections are in order": "images ascend by image_uri; detection_index counts from 0 while scores fall",
    "scores are over the floor": "of every stored detection, and none is over 1",
    "labels are the model's": "each label is one of the model's, and category is its name",
    "boxes lie in their image": "finite, corners in order, inside the size that the image's row states",
    "accepted ones pass the policy": "the score threshold of their category and the box side",
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
            others = len(wrong) - 1
            more = f" ({others} more check{'s' if others > 1 else ''} failed)" if others else ""
            raise AuditError(f"run {self.run_id}: {wrong[0].name}: {wrong[0].finding}{more}")


@dataclass(slots=True)
class Findings:
    """Counts and complaints while shards go by.

    Attributes:
        last_uri: greatest image_uri of the shards so far of this part of the plan, in UTF-8 byte order.
    """

    first: dict[str, str] = field(default_factory=dict)
    number: dict[str, int] = field(default_factory=dict)
    num_labelled: int = 0
    num_empty: int = 0
    num_failed: int = 0
    num_deleted: int = 0
    num_detections: int = 0
    num_candidates: int = 0
    last_uri: str | None = None

    def complain(self, check: str, finding: str, number: int = 1) -> None:
        """A check does not hold, `number` times; of each the first finding and their number are kept."""
        self.first.setdefault(check, finding)
        self.number[check] = self.number.get(check, 0) + number

    def checks(self) -> tuple[Check, ...]:
        """Every check, in order."""
        return tuple(Check(name, name not in self.first, self._finding(name)) for name in CHECKS)

    def _finding(self, name: str) -> str:
        if name not in self.first:
            return CHECKS[name]
        more = self.number[name] - 1
        return self.first[name] + (f" (and {more} more)" if more else "")
