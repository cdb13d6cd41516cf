"""One labelled night on a local Ray cluster whose metrics are scraped, with a labeller killed in the middle."""

import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from batchdet.demo.broken import draw_broken
from batchdet.demo.scenes import draw_scenes
from batchdet.demo.shipped import shipped_model
from tests.contract.outputs import num_committed
from tests.contract.processes import started
from tests.deploy.prometheus import Prometheus, prometheus

IMAGES_PER_SHARD = 6


@dataclass(frozen=True)
class Night:
    """A run and where it can be asked about.

    Attributes:
        agent: HOST:PORT of the node's metrics agent, still running.
        row: the run's row, as `label --json` prints it.
        err: what the driver said.
        server: a Prometheus that scraped it all along; None where Debian's is not installed.
    """

    agent: str
    row: dict[str, Any]
    err: str
    output: Path
    server: Prometheus | None


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """A node whose processes tell its agent their metrics every second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture(scope="package")
def night(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    folder = tmp_path_factory.mktemp("night")
    agent = f"{cluster.address.partition(':')[0]}:{cluster.head_node.metrics_export_port}"
    (folder / "pictures").mkdir()
    # Enough for a labeller to live through several exports: a rate over its series needs two.
    for copy in range(8):
        for drawn in (*draw_scenes(seed=5, count=30), *draw_broken(seed=5)):
            (folder / "pictures" / f"{copy}-{drawn.name}").write_bytes(drawn.data)
    watched = prometheus(folder / "monitoring", agent) if shutil.which("prometheus") else nullcontext()
    with watched as server:
        row, err = _label(cluster, folder)
        yield Night(agent, row, err, folder / "labels", server)


def _label(cluster: Cluster, folder: Path) -> tuple[dict[str, Any], str]:
    output = folder / "labels"
    flags = ["--source", str(folder / "pictures"), "--output", str(output), "--model", str(shipped_model())]
    settings = {
        "plan.images_per_shard": IMAGES_PER_SHARD,
        "reading.block_images": 2,
        "limits.max_failure_rate": 1.0,
        "cluster.labellers": 1,
    }
    sets = [f"--set={name}={value}" for name, value in settings.items()]
    arguments = ["label", "--json", "--ray", cluster.address, *flags, *sets]
    with started(folder / "start", arguments, {}) as command:
        assert command.until(lambda: num_committed(output) >= 1), command.err
        _labeller().kill()
        assert command.end() == 0, command.err
        return json.loads(command.out), command.err


def _labeller() -> psutil.Process:
    """The labeller among the cluster's processes, which are children of this one."""
    children = psutil.Process().children(recursive=True)
    return next(child for child in children if child.status() != "zombie" and child.name().startswith("ray::Labeller"))
