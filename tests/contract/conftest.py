"""One bucket of made pictures, one job, one Ray cluster: what every runner must agree on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray

from batchdet.config import JobConfig, load_job
from batchdet.demo.broken import draw_broken
from batchdet.demo.scenes import draw_scenes
from batchdet.demo.shipped import shipped_model
from batchdet.labelling import Hardware, InlineRunner
from batchdet.records import PlanCounts, RunRow, ShardReport
from batchdet.run import label_bucket

NUM_SCENES = 30
IMAGES_PER_SHARD = 6


@dataclass
class Recorder:
    """A Progress that remembers."""

    reports: list[ShardReport] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    counts: PlanCounts | None = None
    images_done: int = -1

    def listing(self, keys: int) -> None:
        pass

    def planned(self, run_id: str, counts: PlanCounts, images_done: int) -> None:
        self.counts, self.images_done = counts, images_done

    def labellers(self, alive: int, wanted: int) -> None:
        pass

    def shard_committed(self, report: ShardReport) -> None:
        self.reports.append(report)

    def log(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scenes of many shapes and formats, and one file of every kind of damage."""
    folder = tmp_path_factory.mktemp("pictures")
    for drawn in (*draw_scenes(seed=41, count=NUM_SCENES), *draw_broken(seed=41)):
        (folder / drawn.name).write_bytes(drawn.data)
    return folder


@pytest.fixture
def make_job(pictures: Path, tmp_path: Path) -> Any:
    """A job over the pictures; keyword arguments override fields by dotted path."""

    def make(**fields: object) -> JobConfig:
        base: dict[str, object] = {
            "source": str(pictures),
            "output": str(tmp_path / "labels"),
            "model.reference": str(shipped_model()),
            "plan.images_per_shard": IMAGES_PER_SHARD,
            "reading.block_images": 4,
            "limits.max_failure_rate": 1.0,
        }
        return load_job(None, base | fields)

    return make


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine, as `--ray local` starts it."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={
            "worker_process_setup_hook": "tests.contract.deadly.install",
            "env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])},
        },
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an inline run nobody disturbed: what every other run is compared with."""
    output = tmp_path_factory.mktemp("undisturbed")
    job = load_job(
        None,
        {
            "source": str(pictures),
            "output": str(output),
            "model.reference": str(shipped_model()),
            "plan.images_per_shard": IMAGES_PER_SHARD,
            "reading.block_images": 4,
            "limits.max_failure_rate": 1.0,
        },
    )
    row = label_bucket(job, InlineRunner(Hardware("cpu", 1)), Recorder())
    assert row.status == "complete"
    return output


def as_json(row: RunRow) -> dict[str, Any]:
    """The numbers of a run that must not depend on where it ran."""
    return {name: getattr(row, name) for name in row.__slots__ if name.startswith("num_")} | {
        "policy": json.loads(row.policy)
    }
