"""How many labellers fit: tables of clusters, with the reason of each case."""

from contextlib import nullcontext

import pytest

from batchdet.cluster.capacity import Demand, labeller_demand, labellers_that_fit, require_room
from batchdet.config import ClusterConfig
from batchdet.errors import ClusterError

CPU_NODE = {"CPU": 8.0}
GPU_NODE = {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("config", "nodes", "expected"),
    [
        ({}, [CPU_NODE], Demand(1, 0, 1, False, 1)),  # no GPU: one core each, reads in its own threads
        ({}, [CPU_NODE, GPU_NODE], Demand(1, 1, 1, True, 1)),  # a GPU anywhere: one each, reads by tasks
        ({"gpus_per_labeller": 0}, [GPU_NODE], Demand(1, 0, 1, False, 1)),  # asked to leave the GPUs alone
        ({"gpus_per_labeller": 0.5}, [GPU_NODE], Demand(1, 0.5, 1, True, 1)),  # a share of a GPU
        ({"cpus_per_labeller": 2}, [CPU_NODE], Demand(2, 0, 2, False, 1)),  # threads follow the cores
        ({"cpus_per_labeller": 0.5}, [CPU_NODE], Demand(0.5, 0, 1, False, 1)),  # never less than one thread
        ({"readers": "tasks"}, [CPU_NODE], Demand(1, 0, 1, True, 1)),  # asked for
        ({"readers": "threads"}, [GPU_NODE], Demand(1, 1, 1, False, 1)),  # asked for
        ({}, [{"CPU": 1.0, "GPU": 1.0}], Demand(1, 1, 1, False, 1)),  # no core is left for a read task
    ],
)
def test_demand(config: dict[str, object], nodes: list[dict[str, float]], expected: Demand) -> None:
    assert labeller_demand(ClusterConfig.model_validate(config), nodes) == expected


@pytest.mark.parametrize(
    ("demand", "nodes", "expected"),
    [
        (Demand(1, 0, 1, False, 1), [CPU_NODE], 8),  # one a core
        (Demand(3, 0, 3, False, 1), [CPU_NODE, CPU_NODE], 4),  # never across nodes
        (Demand(1, 1, 1, True, 1), [GPU_NODE, CPU_NODE], 4),  # one a GPU; the CPU node reads
        (Demand(1, 0.25, 1, True, 1), [GPU_NODE], 15),  # shares of a GPU; one core reads
        (Demand(0.1, 0, 1, False, 1), [{"CPU": 1.0}], 10),  # binary fractions do not lose one
        (Demand(1, 0, 1, True, 1), [CPU_NODE], 4),  # half the cores are left to read tasks
        (Demand(1, 1, 1, True, 1), [{"CPU": 8.0, "GPU": 8.0}], 7),  # a core for reading, or all would wait for ever
        (Demand(1, 1, 1, True, 1), [{"CPU": 1.0, "GPU": 1.0}], 0),  # none is left for reading
        (Demand(1, 1, 1, True, 1), [CPU_NODE], 0),  # no GPU yet: an autoscaler may bring one
        (Demand(1, 0, 1, False, 1), [], 0),  # no node yet
    ],
)
def test_labellers_that_fit(demand: Demand, nodes: list[dict[str, float]], expected: int) -> None:
    assert labellers_that_fit(demand, nodes) == expected


@pytest.mark.parametrize(
    ("config", "nodes", "may_grow", "says"),
    [
        ({"labellers": 8, "readers": "tasks"}, [CPU_NODE], True, "leave no core of 8 for read tasks"),
        ({"readers": "tasks"}, [{"CPU": 1.0}], True, "leave no core of 1 for read tasks"),  # auto: one would starve
        ({"labellers": 9, "readers": "tasks"}, [CPU_NODE], True, None),  # more nodes are needed anyway
        ({"labellers": 4}, [{"CPU": 0.0}], True, None),  # a head without cores, before its autoscaler woke
        ({"gpus_per_labeller": 1}, [CPU_NODE], False, "no node holds a labeller of 1 CPUs and 1 GPUs"),
        ({"cpus_per_labeller": 9}, [CPU_NODE, CPU_NODE], False, "no node holds a labeller of 9 CPUs"),
        ({"gpus_per_labeller": 1}, [CPU_NODE], True, None),  # an autoscaler may bring a GPU
    ],
)
def test_a_job_that_would_wait_for_ever_is_refused(
    config: dict[str, object], nodes: list[dict[str, float]], may_grow: bool, says: str | None
) -> None:
    section = ClusterConfig.model_validate(config)
    with pytest.raises(ClusterError, match=says) if says else nullcontext():
        require_room(section, labeller_demand(section, nodes), nodes, may_grow)
