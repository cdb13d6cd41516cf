"""A cluster of two nodes loses one in the middle of a run; the rest goes on, and no row tells of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from batchdet.demo.shipped import shipped_model
from tests.contract.conftest import IMAGES_PER_SHARD
from tests.contract.outputs import assert_same_rows, num_committed
from tests.contract.processes import started


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head and one more node, a core each, on this machine."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("readers", ["threads", "tasks"])
def test_a_lost_node_changes_no_row(
    readers: str, cluster: Cluster, pictures: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels"
    node = cluster.add_node(num_cpus=1)
    settings = {
        "plan.images_per_shard": IMAGES_PER_SHARD,
        "reading.block_images": 4,
        "limits.max_failure_rate": 1.0,
        "cluster.readers": readers,
        # Room for a labeller and its read tasks on either node.
        "cluster.cpus_per_labeller": 0.5,
        "cluster.cpus_per_reader": 0.5,
        # A lost node is no fault of a shard's: one attempt is enough.
        "limits.max_attempts_per_shard": 1,
    }
    flags = ["--source", str(pictures), "--output", str(output), "--model", str(shipped_model())]
    sets = [f"--set={name}={value}" for name, value in settings.items()]
    with started(tmp_path / "start", ["label", "--ray", cluster.address, *flags, *sets], {}) as command:
        assert command.until(lambda: "labellers: " in command.err and num_committed(output) >= 1), command.err
        cluster.remove_node(node, allow_graceful=False)
        assert command.end() == 0, command.err
        assert "Traceback" not in command.err
    assert_same_rows(output, undisturbed)
