"""What is done: commit a shard, list committed shards, open and close runs. Knows no pictures and no detector.

Nothing is stored twice: a shard is done when its images file is there, a run when its row is.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from batchdet.errors import NotFoundError, OpenShardsError
from batchdet.records import DeletedImage, ImageOutcome, LabelledImage, RunRow, Shard, ShardReport
from batchdet.storage.filesystem import Store
from batchdet.storage.parquet import opened, read_rows
from batchdet.storage.plan import PLANS, RUN_ID, RunPlan, derivation_of, read_plan, read_shard
from batchdet.storage.reader import prefetch
from batchdet.storage.schema import (
    DETECTIONS_ENCODING,
    IMAGES_ENCODING,
    KNOWN,
    LABELLED_BYTES,
    RUNS,
    RUNS_ENCODING,
    FileStamp,
    check_schema_version,
    completed,
    encode_table,
)
from batchdet.storage.tables import count_failures, shard_tables
from batchdet.timeline import Timeline

_SHARD_FILE = re.compile(r"shard-(\d{5,})\.parquet")
_READ_THREADS = 8
_READ_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class RunCounts:
    """What the committed images files of a run add up to.

    Attributes:
        num_shards: committed.
        num_labelled: images with status labelled, the empty ones included.
        num_empty: labelled images without an accepted detection.
        num_deleted: images with status deleted.
        num_detections: accepted detections.
        failures: count by `stage:code`.
    """

    num_shards: int
    num_images: int
    num_labelled: int
    num_empty: int
    num_failed: int
    num_deleted: int
    num_detections: int
    failures: dict[str, int]


class Ledger:
    """The runs and committed shards of one output folder; holds no state of its own."""

    def __init__(self, output: Store, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._output = output
        self._clock = clock

    @property
    def output(self) -> Store:
        """The folder."""
        return self._output

    def run_rows(self) -> list[RunRow]:
        """Every closed run, newest first; one that is removed meanwhile is none.

        Raises:
            SchemaVersionError: a run was written with another schema version.
        """
        names = [f"runs/{run_id}.parquet" for run_id in reversed(self._closed_run_ids())]
        with ThreadPoolExecutor(_READ_THREADS) as threads:
            return [row for row in threads.map(self._read_run_if_there, names) if row is not None]

    def complete_runs(self) -> list[RunRow]:
        """Closed runs that have all their shards, newest first."""
        return [row for row in self.run_rows() if row.status == "complete"]

    def open_runs(self) -> list[RunPlan]:
        """Plans of the runs that were opened and not closed, newest first.

        Raises:
            SchemaVersionError: a plan was written with another schema version.
        """
        closed = set(self._closed_run_ids())
        folders = [name.rsplit("/", 1)[-1] for name in self._output.list_folders(PLANS)]
        plans = []
        for run_id in sorted(set(folders) - closed, reverse=True):
            if RUN_ID.fullmatch(run_id):
                try:
                    plans.append(read_plan(self._output, run_id))
                except NotFoundError:
                    continue  # its planner died before plan.json: the run was never opened
        return plans

    def stopped_run(self) -> RunPlan | None:
        """The plan of the newest run, if it labels, was closed as partial and none was begun since."""
        newest = self.run_ids()[-1:]
        if newest and newest[0] in self._closed_run_ids():
            row = self._read_run(f"runs/{newest[0]}.parquet")
            labels = derivation_of(row.config) is None
            return read_plan(self._output, row.run_id) if row.status == "partial" and labels else None
        return None

    def run_ids(self) -> list[str]:
        """Every run id in use, closed, open or only begun, ascending."""
        begun = {name.rsplit("/", 1)[-1] for name in self._output.list_folders(PLANS)}
        return sorted({run_id for run_id in begun if RUN_ID.fullmatch(run_id)} | set(self._closed_run_ids()))

    def committed(self, run_id: str) -> set[int]:
        """Shards of the run whose commit marker is there."""
        names = (name.rsplit("/", 1)[-1] for name in self._output.list(f"images/run_id={run_id}"))
        return {int(match.group(1)) for name in names if (match := _SHARD_FILE.fullmatch(name))}

    def commit(
        self,
        plan: RunPlan,
        shard: Shard,
        outcomes: Sequence[ImageOutcome],
        backend: str | None = None,
        timeline: Timeline | None = None,
    ) -> ShardReport:
        """Write the shard's detections, then its images: the commit marker.

        A second commit of the same outcomes overwrites both files with the same rows, `labelled_at` excepted.

        Args:
            plan: the shard's run.
            shard: as read from the plan.
            outcomes: exactly one per image of the shard, in any order.
            backend: what computed them, for the files' metadata.
            timeline: the shard's, which the report's seconds come from; None starts one.

        Raises:
            ValueError: the outcomes do not cover the shard.
            StorageError: the output refused a file; the shard stays open.
        """
        timeline = Timeline() if timeline is None else timeline
        stamp = replace(plan.header.stamp, backend=backend)
        with timeline.span("commit", len(outcomes)):
            with timeline.span("encode", len(outcomes)):
                tables = shard_tables(shard, outcomes, plan.header.model.categories, self._clock())
                detections = encode_table(tables.detections, DETECTIONS_ENCODING, stamp)
                images = encode_table(tables.images, IMAGES_ENCODING, stamp)
            with timeline.span("upload", len(outcomes)):
                self.write_shard(shard.run_id, shard.shard_id, detections, images)
        labelled = [outcome for outcome in outcomes if isinstance(outcome, LabelledImage)]
        return ShardReport(
            shard_id=shard.shard_id,
            num_images=len(outcomes),
            num_labelled=len(labelled),
            num_empty=sum(not image.accepted.any() for image in labelled),
            num_detections=sum(int(image.accepted.sum()) for image in labelled),
            failures=count_failures(outcomes),
            seconds=timeline.seconds,
            bytes_read=sum(outcome.facts.size_bytes or 0 for outcome in outcomes),
            num_copied=sum(image.copied_from is not None for image in labelled),
        )

    def commit_deleted(self, plan: RunPlan) -> None:
        """Commit what is left of the plan's shards of images that are gone; they need no labeller.

        Raises:
            StorageError: the plan cannot be read, or the output refused a file; the rest stays open.
        """
        for shard_id in sorted(set(plan.parts[-1]) - self.committed(plan.run_id)):
            shard = read_shard(self._output, plan, shard_id)
            self.commit(plan, shard, [DeletedImage(ref) for ref in shard.images])

    def write_shard(self, run_id: str, shard_id: int, detections: bytes, images: bytes) -> None:
        """Write both files of a shard, the commit marker last.

        Raises:
            StorageError: the output refused a file; the shard stays open.
        """
        self._output.write_bytes(shard_file("detections", run_id, shard_id), detections)
        self._output.write_bytes(shard_file("images", run_id, shard_id), images)

    def counts(self, run_id: str) -> RunCounts:
        """Counts of a run, derived from its committed images files; a file at a time is held per reading thread."""
        shard_ids = sorted(self.committed(run_id))
        total = RunCounts(len(shard_ids), 0, 0, 0, 0, 0, 0, {})
        with ThreadPoolExecutor(_READ_THREADS) as threads:
            for part in threads.map(lambda shard_id: self._count_shard(run_id, shard_id), shard_ids):
                total = _add(total, part)
        return total

    def closing_row(self, plan: RunPlan, status: Literal["complete", "partial"], images_per_second: float) -> RunRow:
        """The run's row as it stands now, its counts derived from the committed files."""
        counts = self.counts(plan.run_id)
        header = plan.header
        return RunRow(
            run_id=plan.run_id,
            status=status,
            started_at=header.started_at,
            finished_at=self._clock(),
            source=header.source,
            previous_run_id=header.previous_run_id,
            model=header.model.reference,
            architecture=header.model.architecture,
            model_digest=header.model.digest,
            categories=header.model.categories,
            policy=header.policy,
            policy_digest=header.policy_digest,
            config=header.config,
            num_listed=plan.counts.num_listed,
            num_labelled=counts.num_labelled,
            num_empty=counts.num_empty,
            num_failed=counts.num_failed,
            num_unchanged=plan.counts.num_unchanged,
            num_deleted=counts.num_deleted,
            num_detections=counts.num_detections,
            images_per_second=images_per_second,
            versions=header.versions,
        )

    def close(self, row: RunRow) -> None:
        """Write the run's row; a run already closed as complete stays as it is.

        Raises:
            OpenShardsError: the row says complete and shards of the plan are not committed.
        """
        name = f"runs/{row.run_id}.parquet"
        if self._output.exists(name) and self._read_run(name).status == "complete":
            return
        if row.status == "complete":
            open_shards = set(range(read_plan(self._output, row.run_id).num_shards)) - self.committed(row.run_id)
            if open_shards:
                raise OpenShardsError(f"run {row.run_id}: {len(open_shards)} shards are open, first {min(open_shards)}")
        table = pa.Table.from_pylist([asdict(row)], schema=RUNS)
        stamp = FileStamp(row.run_id, row.model_digest, row.policy_digest)
        self._output.write_bytes(name, encode_table(table, RUNS_ENCODING, stamp))

    def known_images(self, run_ids: Iterable[str]) -> Iterator[pa.RecordBatch]:
        """Rows of `schema.KNOWN` of every committed image of these runs, streamed; a few files are held at a time."""
        return self._stream(run_ids, self._known_in_shard)

    def labelled_bytes(self, run_ids: Iterable[str]) -> Iterator[pa.RecordBatch]:
        """Rows of `schema.LABELLED_BYTES` of every labelled image of these runs, streamed likewise."""
        return self._stream(run_ids, self._labelled_in_shard)

    def _stream(self, run_ids: Iterable[str], read: Callable[[tuple[str, int]], pa.Table]) -> Iterator[pa.RecordBatch]:
        shards = ((run_id, shard_id) for run_id in run_ids for shard_id in sorted(self.committed(run_id)))
        for table in prefetch(shards, read, _READ_THREADS, _READ_BYTES, _READ_THREADS):
            yield from table.to_batches()

    def _closed_run_ids(self) -> list[str]:
        names = (name.rsplit("/", 1)[-1].removesuffix(".parquet") for name in self._output.list("runs"))
        return sorted(name for name in names if RUN_ID.fullmatch(name))

    def _read_run_if_there(self, name: str) -> RunRow | None:
        try:
            return self._read_run(name)
        except NotFoundError:
            return None

    def _read_run(self, name: str) -> RunRow:
        # not read_table: it loads pyarrow.dataset and with it pandas, a third of a second for every small command
        with opened(io.BytesIO(self._output.read_bytes(name))) as file:
            table = read_rows(file)
        check_schema_version(table.schema.metadata, self._output.child_uri(name))
        (values,) = completed(table, RUNS).select(RUNS.names).to_pylist()
        return RunRow(**values | {"categories": tuple(values["categories"])})

    def _read_columns(self, name: str, columns: list[str]) -> pa.Table:
        uri = self._output.child_uri(name)
        with opened(self._output.open_input(name)) as file:
            check_schema_version(file.schema_arrow.metadata, uri)
            # a file of before a column was added lacks it
            there = [column for column in columns if column in file.schema_arrow.names]
            return read_rows(file, there)

    def _known_in_shard(self, shard: tuple[str, int]) -> pa.Table:
        return _placed(self._read_columns(shard_file("images", *shard), KNOWN.names), KNOWN, shard)

    def _labelled_in_shard(self, shard: tuple[str, int]) -> pa.Table:
        columns = [*LABELLED_BYTES.names, "status"]
        table = self._read_columns(shard_file("images", *shard), columns)
        labelled = pc.and_(pc.equal(table["status"], pa.scalar("labelled")), pc.is_valid(table["content_digest"]))
        return _placed(table.filter(labelled), LABELLED_BYTES, shard)

    def _count_shard(self, run_id: str, shard_id: int) -> RunCounts:
        columns = ["status", "num_detections", "failure_stage", "failure_code"]
        table = self._read_columns(shard_file("images", run_id, shard_id), columns)
        failed = table.filter(pc.equal(table["status"], pa.scalar("failed")))
        pairs = zip(failed["failure_stage"].to_pylist(), failed["failure_code"].to_pylist(), strict=True)
        failures: dict[str, int] = {}
        for stage, code in pairs:
            failures[f"{stage}:{code}"] = failures.get(f"{stage}:{code}", 0) + 1
        return RunCounts(
            num_shards=0,
            num_images=len(table),
            num_labelled=_count_true(pc.equal(table["status"], pa.scalar("labelled"))),
            num_empty=_count_true(pc.equal(table["num_detections"], pa.scalar(0, pa.int32()))),
            num_failed=len(failed),
            num_deleted=_count_true(pc.equal(table["status"], pa.scalar("deleted"))),
            num_detections=pc.sum(table["num_detections"]).as_py() or 0,
            failures=failures,
        )


def _placed(table: pa.Table, schema: pa.Schema, shard: tuple[str, int]) -> pa.Table:
    """The columns of a schema: where the rows are is added, what the file lacks is null."""
    constant = {"run_id": shard[0], "shard_id": shard[1]}
    for name in set(schema.names) - set(table.column_names):
        table = table.append_column(name, pa.array([constant.get(name)] * len(table), schema.field(name).type))
    return table.select(schema.names).cast(schema)


def _add(left: RunCounts, right: RunCounts) -> RunCounts:
    failures = dict(left.failures)
    for key, count in right.failures.items():
        failures[key] = failures.get(key, 0) + count
    numbers = {name: value + getattr(right, name) for name, value in asdict(left).items() if name != "failures"}
    return RunCounts(**numbers, failures=dict(sorted(failures.items())))


def _count_true(mask: Any) -> int:
    return pc.sum(mask).as_py() or 0


def shard_file(table: str, run_id: str, shard_id: int) -> str:
    """A shard's file of `images` or `detections`, relative to the output."""
    return f"{table}/run_id={run_id}/shard-{shard_id:05d}.parquet"
