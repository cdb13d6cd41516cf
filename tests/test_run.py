"""Runs that follow one another on one output: what is resumed, refused, closed as partial, and forgiven."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable

from batchdet.config import JobConfig, load_job
from batchdet.demo.shipped import shipped_model
from batchdet.errors import ConfigError, FailureRateError, OpenShardsError, OutputHeldError, SourceError, StorageError
from batchdet.labelling import RunContext
from batchdet.progress import PlainProgress, Progress
from batchdet.records import FailedImage, ImageFacts, ImageOutcome, ImageRef, LabelledImage
from batchdet.run import Manner, label_bucket
from batchdet.storage.filesystem import open_store
from batchdet.storage.lease import LEASE
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import read_shard

MakeJob = Callable[..., JobConfig]


class StandIn:
    """A runner that labels by name: `bad-*` fails, everything else is empty; stops after so many shards."""

    def __init__(self, shards: int | None = None) -> None:
        self.shards = shards
        self.labelled: list[str] = []

    def ready(self, job: JobConfig, progress: Progress) -> AbstractContextManager[None]:
        return nullcontext()

    def run(self, context: RunContext, shard_ids: Sequence[int], progress: Progress) -> None:
        output = open_store(context.job.output, {})
        for shard_id in list(shard_ids)[: self.shards]:
            shard = read_shard(output, context.plan, shard_id)
            self.labelled += [Path(ref.uri).name for ref in shard.images]
            report = Ledger(output).commit(context.plan, shard, [_outcome(ref) for ref in shard.images])
            progress.shard_committed(report)


def _outcome(ref: ImageRef) -> ImageOutcome:
    if Path(ref.uri).name.startswith("bad"):
        return FailedImage(ref, "decode", "truncated", "cut short")
    none = np.zeros(0, np.float32)
    facts = ImageFacts(width=8, height=8, decoder="stand-in")
    return LabelledImage(ref, facts, none.reshape(0, 4), none, np.zeros(0, np.int64), np.zeros(0, bool), False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(40):
        (folder / f"good-{number:02d}.jpg").write_bytes(b"x")
    return folder


@pytest.fixture
def make_job(source: Path, tmp_path: Path) -> MakeJob:
    def make(**fields: object) -> JobConfig:
        base: dict[str, object] = {
            "source": str(source),
            "output": str(tmp_path / "labels"),
            "model.reference": str(shipped_model()),
            "plan.images_per_shard": 10,
        }
        return load_job(None, base | fields)

    return make


def quiet() -> PlainProgress:
    return PlainProgress(StringIO())


def test_a_file_known_to_be_bad_does_not_stop_the_nights_after(source: Path, make_job: MakeJob) -> None:
    (source / "bad.jpg").write_bytes(b"x")
    assert label_bucket(make_job(), StandIn(), quiet()).num_failed == 1
    again = label_bucket(make_job(), StandIn(), quiet())
    assert (again.status, again.num_failed, again.num_unchanged) == ("complete", 1, 40)
    (source / "new.jpg").write_bytes(b"x")
    night = StandIn()
    row = label_bucket(make_job(), night, quiet())
    assert night.labelled == ["bad.jpg", "new.jpg"]
    assert (row.num_labelled, row.num_failed) == (1, 1)


def test_one_bad_file_among_a_nights_few_ends_no_run(source: Path, make_job: MakeJob) -> None:
    label_bucket(make_job(), StandIn(), quiet())
    (source / "bad.jpg").write_bytes(b"x")
    row = label_bucket(make_job(), StandIn(), quiet())
    assert (row.status, row.num_failed, row.num_unchanged) == ("complete", 1, 40)
    (source / "bad-too.jpg").write_bytes(b"x")
    with pytest.raises(FailureRateError, match="2 images failed already"):
        label_bucket(make_job(**{"limits.max_failure_rate": 0}), StandIn(), quiet())


def test_too_many_failures_end_the_run_open_until_the_limit_is_raised(source: Path, make_job: MakeJob) -> None:
    for number in range(5):
        (source / f"bad-{number}.jpg").write_bytes(b"x")
    with pytest.raises(FailureRateError, match="max_failure_rate"):
        label_bucket(make_job(), StandIn(), quiet())
    with pytest.raises(FailureRateError, match="--new-run"):
        label_bucket(make_job(), StandIn(), quiet())
    raised = StandIn()
    row = label_bucket(make_job(**{"limits.max_failure_rate": 0.5}), raised, quiet())
    assert (row.status, row.num_failed, row.num_labelled) == ("complete", 5, 40)
    assert not [name for name in raised.labelled if name.startswith("bad")], "nothing is labelled twice"


class Robbed(StandIn):
    """Another takes the output when so many shards are committed."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def run(self, context: RunContext, shard_ids: Sequence[int], progress: Progress) -> None:
        output = open_store(context.job.output, {})
        self.shards = self.after
        super().run(context, shard_ids, progress)
        output.write_bytes(LEASE, output.read_bytes(LEASE).replace(b'"token": "', b'"token": "another '))
        self.shards = None
        super().run(context, list(shard_ids)[self.after :], progress)


def test_a_run_that_lost_its_output_does_not_close_it(make_job: MakeJob) -> None:
    with pytest.raises(OutputHeldError, match=r"labels: taken over by `batchdet label` of .*; what is committed stays"):
        label_bucket(make_job(), Robbed(after=4), quiet())
    ledger = Ledger(open_store(make_job().output, {}))
    assert ledger.run_rows() == []
    with pytest.raises(OutputHeldError, match="is held by"):
        label_bucket(make_job(), StandIn(), quiet())
    again = StandIn()
    assert label_bucket(make_job(), again, quiet(), Manner(steal_lease=True)).status == "complete"
    assert again.labelled == []


def test_a_job_that_says_so_is_published_when_complete(make_job: MakeJob) -> None:
    job = make_job(**{"publish.format": "delta"})
    with pytest.raises(OpenShardsError):
        label_bucket(job, StandIn(shards=1), quiet())
    output = open_store(job.output, {})
    assert not output.exists("images/_delta_log")
    row = label_bucket(job, StandIn(), quiet())
    table = DeltaTable(output.path("images"))
    assert set(table.to_pyarrow_table()["run_id"].to_pylist()) == {row.run_id}
    assert table.to_pyarrow_table().num_rows == row.num_labelled == 40


def test_a_run_that_cannot_be_published_is_complete_all_the_same(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(**{"publish.format": "iceberg", "publish.catalog": {"type": "sql", "uri": "sqlite:////none/x.db"}})
    with pytest.raises(StorageError, match="is complete, and published by the next run"):
        label_bucket(job, StandIn(), quiet())
    assert [row.status for row in Ledger(open_store(job.output, {})).run_rows()] == ["complete"]


def test_where_nothing_can_be_published_nothing_is_labelled(make_job: MakeJob) -> None:
    night = StandIn()
    with pytest.raises(ConfigError, match="delta is published on a disk and on S3"):
        label_bucket(make_job(output="memory://labels", **{"publish.format": "delta"}), night, quiet())
    assert night.labelled == []


def test_a_run_notices_a_thief_between_shards(make_job: MakeJob) -> None:
    class Watched(Robbed):
        def run(self, context: RunContext, shard_ids: Sequence[int], progress: Progress) -> None:
            super().run(context, list(shard_ids)[:1], progress)
            for shard_id in list(shard_ids)[1:] * 10_000:
                StandIn.run(self, context, [shard_id], progress)

    with pytest.raises(OutputHeldError, match="taken over by"):
        label_bucket(make_job(**{"limits.lease_seconds": 3}), Watched(after=1), quiet())


def test_an_open_run_is_refused_to_another_job(make_job: MakeJob) -> None:
    with pytest.raises(OpenShardsError, match="2 of 4 shards are open"):
        label_bucket(make_job(), StandIn(shards=2), quiet())
    for field, value in {
        "policy.score_threshold": 0.7,
        "model.score_floor": 0.1,
        "plan.max_pixels": 10,
        "plan.max_bytes": 10,
        "reading.block_images": 7,
    }.items():
        with pytest.raises(ConfigError, match=rf"{field.split('.')[0]}.*--new-run"):
            label_bucket(make_job(**{field: value}), StandIn(), quiet())
    rest = StandIn()
    assert label_bucket(make_job(**{"reading.prefetch_blocks": 2}), rest, quiet()).num_labelled == 40
    assert len(rest.labelled) == 20


def test_a_new_run_gives_up_the_open_one_only_when_it_has_a_plan(make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(OpenShardsError):
        label_bucket(make_job(), StandIn(shards=2), quiet())
    with pytest.raises(SourceError):
        label_bucket(make_job(source=str(tmp_path / "typo")), StandIn(), quiet(), Manner("give_up"))
    ledger = Ledger(open_store(str(tmp_path / "labels"), {}))
    assert len(ledger.open_runs()) == 1, "a mistake gives nothing up"
    fresh = StandIn()
    row = label_bucket(make_job(), fresh, quiet(), Manner("give_up"))
    assert len(fresh.labelled) == row.num_labelled == 40
    assert sorted(run.status for run in ledger.run_rows()) == ["complete", "partial"]


def test_an_open_run_older_than_a_complete_one_is_not_resumed(make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(OpenShardsError):
        label_bucket(make_job(), StandIn(shards=1), quiet())
    with pytest.raises(OpenShardsError):
        label_bucket(make_job(), StandIn(shards=1), quiet(), Manner("give_up"))
    partial = next((tmp_path / "labels" / "runs").iterdir())
    partial.unlink()  # as if two drivers had planned at once: two open runs
    label_bucket(make_job(), StandIn(), quiet())
    idle = StandIn()
    assert label_bucket(make_job(), idle, quiet()).num_unchanged == 40
    assert idle.labelled == []
    assert Ledger(open_store(str(tmp_path / "labels"), {})).open_runs() == []
