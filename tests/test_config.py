"""The job file: what is refused, and in which words."""

from typing import Any

import pytest

from batchdet.config import JobConfig, load_job
from batchdet.errors import ConfigError

BASE: dict[str, Any] = {"source": "s3://a/", "output": "s3://b/", "model.reference": "torchvision:ssd300_vgg16"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"polcy.score_threshold": 0.5}, "polcy: unknown field"),
        ({"policy.score_treshold": 0.5}, "policy.score_treshold: unknown field"),
        ({"policy.score_threshold": 1.5}, "policy.score_threshold: .*less than or equal to 1"),
        ({"policy.score_threshold": 0.01}, "policy.score_threshold is 0.01, under model.score_floor"),
        ({"policy.score_thresholds": {"t-shirt": 2}}, "policy.score_thresholds.t-shirt: "),
        ({"policy.min_box_side": float("inf")}, "policy.min_box_side: .*finite"),
        ({"cluster.labellers": "many"}, r"cluster.labellers: .*\(got 'many'\)"),
        ({"plan.extensions": [".jpg"]}, r"plan\.extensions\.0: "),
        ({"reading.block_images": 0}, "reading.block_images: "),
        ({"source.uri": "x"}, "source.uri: source is a single value"),
    ],
)
def test_a_mistake_names_its_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_job(None, BASE | fields)


@pytest.mark.parametrize(
    "options",
    [
        {"key": "AKIA"},
        {"secret": "x"},
        {"token": {"type": "service_account", "private_key": "x"}},
        {"client_kwargs": {"aws_secret_access_key": "x"}},
        {"s3_additional_kwargs": {"SSECustomerKey": "x"}},
        {"headers": {"Authorization": "Bearer x"}},
        {"nested": [{"password": "x"}]},
        {"endpoint_url": "https://me:word@host"},
        {"account_key": "x"},
        {"sas_token": "x"},
    ],
)
def test_secrets_in_storage_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"storage\.source.*looks like a secret; put it in the environment"):
        load_job(None, BASE | {"storage.source": options})


@pytest.mark.parametrize(
    "options", [{"anon": True}, {"token": "anon"}, {"endpoint_url": "https://host"}, {"requester_pays": True}]
)
def test_options_without_secrets_are_taken(options: dict[str, Any]) -> None:
    assert load_job(None, BASE | {"storage.source": options}).storage.source == options


def test_every_field_explains_itself() -> None:
    def undocumented(model: type[Any], path: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                found += undocumented(field.annotation, f"{path}{name}.")
            found += [] if field.description else [path + name]
        return found

    assert undocumented(JobConfig, "") == []
