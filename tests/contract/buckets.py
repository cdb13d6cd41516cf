"""A bucket that changes between runs, and what its output says after each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchdet.analysis.audit import audit_run
from batchdet.analysis.query import ask_columns
from batchdet.config import JobConfig
from batchdet.demo.scenes import draw_scenes
from batchdet.labelling import Hardware, InlineRunner
from batchdet.records import RunRow
from batchdet.run import label_bucket
from batchdet.storage.filesystem import open_store
from tests.contract.conftest import Recorder

MakeJob = Callable[..., JobConfig]


@dataclass
class Night:
    """What a run did."""

    row: RunRow
    recorder: Recorder

    @property
    def copied(self) -> int:
        return sum(report.num_copied for report in self.recorder.reports)

    @property
    def detected(self) -> int:
        return self.row.num_labelled - self.copied

    @property
    def classes(self) -> dict[str, int]:
        counts = self.recorder.counts
        assert counts is not None
        names = ("new", "changed", "failed_retry", "stale", "unchanged", "quarantined", "deleted")
        return {name: getattr(counts, f"num_{name}") for name in names if getattr(counts, f"num_{name}")}


@dataclass
class Bucket:
    folder: Path
    make_job: MakeJob
    output: Path
    fields: dict[str, object] = field(default_factory=dict)

    def job(self, **fields: object) -> JobConfig:
        given = {"source": str(self.folder), "output": str(self.output), "plan.images_per_shard": 3}
        return self.make_job(**(given | self.fields | fields))

    def label(self, runner: Any = None, **fields: object) -> Night:
        recorder = Recorder()
        row = label_bucket(self.job(**fields), runner or InlineRunner(Hardware("cpu", 1)), recorder)
        return Night(row, recorder)

    def night(self, **fields: object) -> Night:
        """A run that is complete and passes its audit."""
        night = self.label(**fields)
        assert night.row.status == "complete"
        audit_run(open_store(str(self.output), {})).require_passed()
        return night

    def ask(self, sql: str) -> list[dict[str, Any]]:
        return ask_columns(open_store(str(self.output), {}), sql).to_pylist()

    def current(self) -> dict[str, str]:
        rows = self.ask("SELECT image_uri, status FROM current_images")
        return {row["image_uri"].rsplit("/", 1)[-1]: row["status"] for row in rows}


def new_bucket(make_job: MakeJob, tmp_path: Path) -> Bucket:
    """Eight scenes."""
    folder = tmp_path / "bucket"
    folder.mkdir()
    for number, drawn in enumerate(draw_scenes(seed=5, count=8)):
        (folder / f"{number}{Path(drawn.name).suffix}").write_bytes(drawn.data)
    return Bucket(folder, make_job, tmp_path / "labels")


def picture(bucket: Bucket, number: int) -> Path:
    (found,) = bucket.folder.glob(f"{number}.*")
    return found


def fresh_scene(seed: int) -> bytes:
    return next(iter(draw_scenes(seed=seed, count=1))).data
