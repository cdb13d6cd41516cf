import pytest

from batchdet.cluster.train import Aside, Crew, settle_crew
from batchdet.errors import ClusterError
from batchdet.training.job import WorkersConfig

CPU_NODE, GPU_NODE, HEAD = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}, {"memory": 4e9}
CREWS = [
    ({}, [CPU_NODE], Crew(1, 1, 8, 0)),
    ({}, [CPU_NODE, {"CPU": 4.0}], Crew(1, 1, 4, 0)),
    ({"number": 2}, [CPU_NODE], Crew(2, 2, 4, 0)),
    ({}, [GPU_NODE], Crew(4, 4, 4, 1)),
    ({}, [GPU_NODE, GPU_NODE], Crew(8, 8, 4, 1)),
    ({"gpus": 0}, [GPU_NODE], Crew(1, 1, 16, 0)),
    ({"number": 8, "least": 2, "cpus": 1}, [GPU_NODE], Crew(8, 2, 1, 1)),
    # A head without cores, and nodes without GPUs, hold no worker and take no share.
    ({"number": 2}, [HEAD, CPU_NODE, CPU_NODE], Crew(2, 2, 8, 0)),
    ({}, [HEAD, GPU_NODE, GPU_NODE], Crew(8, 8, 4, 1)),
    ({}, [CPU_NODE, GPU_NODE], Crew(4, 4, 4, 1)),
]


@pytest.mark.parametrize(("fields", "nodes", "crew"), CREWS)
def test_workers_share_what_the_cluster_has(
    fields: dict[str, object], nodes: list[dict[str, float]], crew: Crew
) -> None:
    assert settle_crew(WorkersConfig.model_validate(fields), nodes, []) == crew


@pytest.mark.parametrize("fields", [{"number": 2, "cpus": 5}, {"gpus": 1}, {"number": 9, "cpus": 1}])
def test_workers_that_fit_nowhere_are_refused_unless_nodes_may_come(fields: dict[str, object]) -> None:
    workers = WorkersConfig.model_validate(fields)
    with pytest.raises(ClusterError, match=r"lower workers\.number or workers\.cpus"):
        settle_crew(workers, [CPU_NODE], [CPU_NODE] if workers.gpus == 1 else [])
    settle_crew(workers, [CPU_NODE], [GPU_NODE])


def test_the_nodes_that_may_come_are_shared_where_none_is_there() -> None:
    assert settle_crew(WorkersConfig(number=2), [HEAD], [CPU_NODE]) == Crew(2, 2, 4, 0)


def test_nodes_that_may_come_and_hold_no_worker_are_no_help() -> None:
    with pytest.raises(ClusterError, match="do not fit into the cluster"):
        settle_crew(WorkersConfig(cpus=64), [CPU_NODE], [CPU_NODE, GPU_NODE])


def test_what_goes_wrong_aside_is_raised_where_it_is_waited_for() -> None:
    """A bug of Ray's or ours must not look like a training that only stopped."""
    closed = []
    aside = Aside(lambda: 1 // 0, then=lambda: closed.append("closed"))
    aside.start()
    with pytest.raises(ZeroDivisionError):
        aside.wait()
    assert closed == ["closed"]
