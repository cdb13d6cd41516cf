"""`ray up`'s file fits Ray's own schema; who runs in the cluster may read the source, write the output, and no more."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

AWS = Path(__file__).parents[2] / "deploy" / "aws"
CLUSTER: dict[str, Any] = yaml.safe_load((AWS / "cluster.yaml").read_text())
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def test_ray_accepts_the_file() -> None:
    jsonschema.validate(CLUSTER, SCHEMA)
    validate_config(prepare_config(CLUSTER))


def test_ray_would_refuse_a_mistake() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(CLUSTER | {"idle_timeout_minute": 5}, SCHEMA)


def test_workers_are_spot_and_the_head_does_no_work() -> None:
    nodes = CLUSTER["available_node_types"]
    assert nodes["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in nodes["head"]["node_config"]
    for name in ("readers", "labellers"):
        assert nodes[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert nodes[name]["min_workers"] == 0
    assert sum(nodes[name]["max_workers"] for name in ("readers", "labellers")) <= CLUSTER["max_workers"]


def test_the_cluster_asks_for_a_token_and_its_dashboard_is_not_open() -> None:
    assert "--env RAY_AUTH_MODE=token" in CLUSTER["docker"]["run_options"]
    assert any(path.endswith(".ray/auth_token") for path in CLUSTER["file_mounts"])
    assert "--dashboard-host=127.0.0.1" in CLUSTER["head_start_ray_commands"][-1]
    for node in CLUSTER["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_the_policy_reads_the_source_and_writes_the_output_only() -> None:
    statements = json.loads((AWS / "iam-policy.json").read_text())["Statement"]
    rights = {
        (action, resource.removeprefix("arn:aws:s3:::"))
        for statement in statements
        for action in statement["Action"]
        for resource in statement["Resource"]
    }
    assert not [action for action, _ in rights if "*" in action]
    assert {action for action, resource in rights if resource == "photos/*"} == {"s3:GetObject"}
    assert {resource for action, resource in rights if action in ("s3:PutObject", "s3:DeleteObject")} == {
        "labels/photos/*"
    }


def test_the_head_ends_only_its_own_workers() -> None:
    statements = json.loads((AWS / "iam-autoscaler.json").read_text())["Statement"]
    (ends,) = [one for one in statements if "ec2:TerminateInstances" in one["Action"]]
    assert ends["Condition"]["StringEquals"] == {"aws:ResourceTag/ray-cluster-name": CLUSTER["cluster_name"]}
    (passes,) = [one for one in statements if "iam:PassRole" in one["Action"]]
    worker = CLUSTER["available_node_types"]["labellers"]["node_config"]["IamInstanceProfile"]["Name"]
    assert passes["Resource"].endswith(f"role/{worker}")
