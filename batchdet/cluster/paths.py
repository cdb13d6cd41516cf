"""Paths of this machine that other machines would have to see. Knows no bucket: those are seen from everywhere."""

import os
from collections.abc import Mapping
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchdet.cluster.session import living_nodes
from batchdet.config import JobConfig
from batchdet.errors import ClusterError, ConfigError

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the driver of a submitted job."""

ANSWER_SECONDS = 60.0


def require_shared_paths(job: JobConfig) -> None:
    """Refuse local paths that labellers on other nodes would not find, and an output Ray would delete.

    Raises:
        ConfigError: a submitted job names a relative output, which lies in Ray's copy of the working directory.
        ClusterError: a node does not see a local path of the job.
    """
    require_shared({"source": job.source, "output": job.output, "model.reference": job.model.reference})


def require_shared(fields: Mapping[str, str]) -> None:
    """As `require_shared_paths`, for the URIs of any job by field; its `output` is one of them."""
    local = {field: uri.removeprefix("file://") for field, uri in fields.items() if _is_local(uri)}
    output = local.get("output", "/")
    if SUBMITTED in os.environ and not Path(output).expanduser().is_absolute():
        raise ConfigError(
            f"output {output}: a relative path of a submitted job lies in a folder that Ray deletes; name a full URI"
        )
    paths = {field: str(Path(path).expanduser().absolute()) for field, path in local.items() if Path(path).exists()}
    if not paths or len(living_nodes()) < 2:
        return
    for address, unseen in _ask_nodes(paths).items():
        for field in unseen:
            raise ClusterError(
                f"{field} {paths[field]} is not there on node {address}; name a bucket, or a folder every node mounts"
            )


def _is_local(uri: str) -> bool:
    return uri.startswith("file://") or ("://" not in uri.partition("@")[0] and not uri.startswith("torchvision:"))


@ray.remote(num_cpus=0)
def _unseen(paths: Mapping[str, str]) -> list[str]:
    return [field for field, path in paths.items() if not Path(path).exists()]


def _ask_nodes(paths: Mapping[str, str]) -> dict[str, list[str]]:
    """What each node does not see, by its address; a node that does not answer in time is not blamed."""
    asked = {}
    for node in living_nodes():
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[_unseen.options(scheduling_strategy=place).remote(paths)] = node["NodeManagerAddress"]
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    return {asked[ref]: ray.get(ref) for ref in answered}
