import pytest

from batchdet.cluster.train import Aside, Crew, settle_crew
from batchdet.errors import ClusterError
from batchdet.training.job import WorkersConfig

CPU_NODE, GPU_NODE = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}
CREWS = [
    ({}, [CPU_NODE], Crew(1, 1, 8, 0)),
    ({}, [CPU_NODE, {"CPU": 4.0}], Crew(1, 1, 4, 0)),
    ({"number": 2}, [CPU_NODE], Crew(2, 2, 4, 0)),
    ({}, [GPU_NODE], Crew(4, 4, 4, 1)),
    ({}, [GPU_NODE, GPU_NODE], Crew(8, 8, 4, 1)),
    ({"gpus": 0}, [GPU_NODE], Crew(1, 1, 16, 0)),
    ({"number": 8, "least": 2, "cpus": 1}, [GPU_NODE], Crew(8, 2, 1, 1)),
]


@pytest.mark.parametrize(("fields", "nodes", "crew"), CREWS)
def test_workers_share_what_the_cluster_has(
    fields: dict[str, object], nodes: list[dict[str, float]], crew: Crew
) -> None:
    assert settle_crew(WorkersConfig.model_validate(fields), nodes, may_grow=False) == crew


@pytest.mark.parametrize("fields", [{"number": 2, "cpus": 5}, {"gpus": 1}, {"number": 9, "cpus": 1}])
def test_workers_that_fit_nowhere_are_refused_unless_nodes_may_come(fields: dict[str, object]) -> None:
    workers = WorkersConfig.model_validate(fields)
    with pytest.raises(ClusterError, match=r"lower workers\.number or workers\.cpus"):
        settle_crew(workers, [CPU_NODE], may_grow=False)
    settle_crew(workers, [CPU_NODE], may_grow=True)


def test_what_goes_wrong_aside_is_raised_where_it_is_waited_for() -> None:
    """A bug of Ray's or ours must not look like a training that only stopped."""
    closed = []
    aside = Aside(lambda: 1 // 0, then=lambda: closed.append("closed"))
    aside.start()
    with pytest.raises(ZeroDivisionError):
        aside.wait()
    assert closed == ["closed"]
