"""`--ray` becomes a runner. Knows no job but its cluster section.

torch and Ray are imported when asked for, so that commands that only read start at once.
"""

from typing import TYPE_CHECKING

from batchdet.config import ClusterConfig

if TYPE_CHECKING:
    from batchdet.run import Runner


def build_runner(ray: str, cluster: ClusterConfig) -> "Runner":
    """The runner of `auto`, `local`, `off` or an address; a cluster is only reached when it runs.

    Raises:
        ConfigError: `cluster` asks for what this machine lacks, with `off`.
    """
    if ray != "off":
        from batchdet.cluster.driver import RayRunner

        return RayRunner(ray)
    from batchdet.labelling import local_runner

    return local_runner(cluster)
