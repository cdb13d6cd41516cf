"""The job file: what is refused, and in which words."""

from pathlib import Path
from typing import Any

import pytest

from batchdet.config import JobConfig, PlanConfig, PolicyConfig, load_job, load_policy
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
        ({"plan.images_per_shard": True}, "plan.images_per_shard: .*true or false"),
        ({"policy.score_threshold": True}, "policy.score_threshold: .*true or false"),
    ],
)
def test_a_mistake_names_its_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_job(None, BASE | fields)


@pytest.mark.parametrize("fields", ["plan: {max_retries: 1, max_retries: 2}", "source: s3://a/\noutput: b\nsource: c"])
def test_a_field_given_twice_is_refused_with_its_line(fields: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(fields)
    with pytest.raises(ConfigError, match=r"job\.yaml is not YAML: line [13]: (max_retries|source) is given twice"):
        load_job(tmp_path / "job.yaml", BASE)


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


@pytest.mark.parametrize("field", ["source", "output", "model.reference"])
@pytest.mark.parametrize(
    "query", ["X-Amz-Signature=hush", "versionId=1&sig=hush", "X-Goog-Signature=hush", "token=hush"]
)
def test_a_signed_url_is_refused_and_not_shown(field: str, query: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} holds a secret") as caught:
        load_job(None, BASE | {field: f"https://host/photos.parquet?{query}"})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("source", ["https://host/photos.parquet?version=2", "s3://photos/a?key=b.jpg"])
def test_a_uri_without_a_secret_is_taken(source: str) -> None:
    assert load_job(None, BASE | {"source": source}).source == source


def test_every_field_explains_itself() -> None:
    def undocumented(model: type[Any], path: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                found += undocumented(field.annotation, f"{path}{name}.")
            found += [] if field.description else [path + name]
        return found

    assert undocumented(JobConfig, "") == []


def test_a_policy_file_holds_the_section_with_or_without_its_name(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    for text in ("score_thresholds: {cat: 0.7}\n", "policy:\n  score_thresholds: {cat: 0.7}\n"):
        path.write_text(text)
        assert load_policy(path) == PolicyConfig(score_thresholds={"cat": 0.7})
    for text, says in (
        ("score_treshold: 1\n", "policy.yaml: policy.score_treshold: unknown field"),
        ("policy: {score_threshold: 2}\n", "policy file .*policy.score_threshold: .*less than"),
        ("policy: 3\n", "policy file .*policy.yaml: policy: .*got 3"),
        ("- 1\n", "policy file .*: expected fields, got list"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=says):
            load_policy(path)


@pytest.mark.parametrize(
    ("wanted", "planned", "images"),
    [
        ("auto", 0, 64),
        ("auto", 100, 64),  # two shards: smaller ones would cost more than they spread
        ("auto", 3_200, 100),  # 32 shards
        ("auto", 10_000_000, 4096),  # a lost labeller never costs more
        (500, 100, 500),  # as asked for
    ],
)
def test_images_of_a_shard(wanted: object, planned: int, images: int) -> None:
    assert PlanConfig.model_validate({"images_per_shard": wanted}).shard_images(planned) == images
