"""Which alarm is raised by what, and that each says it in one sentence."""

from typing import Any

import pytest

from batchdet.analysis.alarms import raised, require_quiet
from batchdet.analysis.config import AlarmConfig, load_diff
from batchdet.errors import AlarmError, ConfigError


def summary(**changed: Any) -> dict[str, Any]:
    """A quiet night; sections given replace fields of the section."""
    counts = {
        "detections_before": 1000,
        "detections_after": 1000,
        "images_before": 500,
        "images_after": 500,
        "per_image_before": 2.0,
        "per_image_after": 2.0,
        "change": 0.0,
    }
    scores = {"num_before": 1000, "num_after": 1000, "mean_before": 0.8, "mean_after": 0.8, "ks": 0.0}
    quiet: dict[str, Any] = {
        "state": {"before": {"images": 1000}},
        "images": {"new": 100, "relabelled": 400, "recovered": 0, "deleted": 0},
        "failures": {"tried": 500, "failed": 0, "failure_rate": 0.0},
        "deleted_fraction": 0.0,
        "same_content": {"objects": 1000, "images": 400, "churn": 0.0},
        "relabelled": {"counts": counts, "scores": scores},
        "runs": {"counts": counts, "scores": scores},
    }
    for path, value in changed.items():
        *parents, leaf = path.split("__")
        node = quiet
        for name in parents:
            node[name] = dict(node[name])
            node = node[name]
        node[leaf] = value
    return quiet


CASES: list[tuple[str, dict[str, Any], dict[str, Any], str | None]] = [
    ("quiet", {}, {}, None),
    ("failures", {"failures": {"tried": 20, "failed": 2, "failure_rate": 0.1}}, {}, "max_failure_rate"),
    ("failures just so many", {"failures": {"tried": 20, "failed": 1, "failure_rate": 0.05}}, {}, None),
    ("failures of few", {"failures": {"tried": 19, "failed": 19, "failure_rate": 1.0}}, {}, None),
    ("failures of none", {"failures": {"tried": 0, "failed": 0, "failure_rate": None}}, {"min_images": 1}, None),
    ("failures off", {"failures__failure_rate": 1.0}, {"max_failure_rate": None}, None),
    ("churn", {"same_content__churn": 0.31}, {}, "max_churn"),
    ("churn of few", {"same_content": {"objects": 99, "images": 9, "churn": 1.0}}, {}, None),
    ("churn of none", {"same_content": {"objects": 0, "images": 0, "churn": None}}, {}, None),
    ("more boxes", {"relabelled__counts__change": 0.31}, {}, "max_count_drift"),
    ("fewer boxes", {"runs__counts__change": -0.31}, {}, "max_count_drift"),
    ("no boxes any more", {"runs__counts__change": -1.0, "runs__counts__detections_after": 0}, {}, "max_count_drift"),
    ("no boxes before", {"runs__counts__change": None}, {}, None),
    ("boxes of few images", {"runs__counts__change": -1.0, "runs__counts__images_before": 19}, {}, None),
    ("scores", {"relabelled__scores__ks": 0.21}, {}, "max_score_drift"),
    ("scores, run to run", {"runs__scores__ks": 0.21}, {}, "max_score_drift"),
    ("scores of few", {"runs__scores__ks": 1.0, "runs__scores__num_before": 99}, {}, None),
    ("scores of none", {"runs__scores__ks": None, "runs__scores__num_after": 0}, {}, None),
    ("deleted", {"deleted_fraction": 0.21, "images__deleted": 210}, {}, "max_deleted_fraction"),
    ("deleted of none", {"deleted_fraction": None, "state": {"before": {"images": 0}}}, {}, None),
    ("too few labelled", {}, {"min_labelled": 501}, "min_labelled"),
    ("enough labelled", {}, {"min_labelled": 500}, None),
]


@pytest.mark.parametrize(("changed", "settings", "name"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_raises_an_alarm(changed: dict[str, Any], settings: dict[str, Any], name: str | None) -> None:
    alarms = raised(summary(**changed), AlarmConfig(**settings))
    assert [alarm.name for alarm in alarms] == ([] if name is None else [name])
    for alarm in alarms:
        assert "\n" not in alarm.sentence
        assert alarm.threshold == getattr(AlarmConfig(**settings), alarm.name)


def test_everything_off_is_quiet() -> None:
    off = AlarmConfig(**{name: None for name in AlarmConfig.model_fields if name.startswith("max_")})
    loud = summary(
        failures__failure_rate=1.0,
        same_content__churn=1.0,
        relabelled__counts__change=9.0,
        relabelled__scores__ks=1.0,
        deleted_fraction=1.0,
    )
    assert len(raised(loud, AlarmConfig())) == 5
    assert raised(loud, off) == ()


def test_all_that_is_raised_is_said_at_once() -> None:
    require_quiet({"alarms": None})
    require_quiet({"alarms": []})
    with pytest.raises(AlarmError, match="one thing; another"):
        require_quiet({"alarms": [{"sentence": "one thing"}, {"sentence": "another"}]})


@pytest.mark.parametrize(
    ("text", "overrides", "churn"),
    [
        (None, {}, None),
        (None, {"compare.iou_threshold": 0.6}, None),
        (None, {"alarms.max_churn": 0.1}, 0.1),
        ("{}", {}, 0.3),
        ("max_churn: 0.2", {}, 0.2),
        ("alarms: {max_churn: 0.2}\ncompare: {moved_px: 3}", {}, 0.2),
        ("compare: {moved_px: 3}", {}, 0.3),
        ("max_churn: 0.2", {"alarms.max_churn": 0.4}, 0.4),
    ],
)
def test_alarms_are_judged_when_they_are_asked_for(
    tmp_path: Any, text: str | None, overrides: dict[str, Any], churn: float | None
) -> None:
    path = None
    if text is not None:
        path = tmp_path / "alarms.yaml"
        path.write_text(text)
    config = load_diff(path, overrides)
    assert (config.alarms and config.alarms.max_churn) == churn
    assert config.compare.moved_px == (3 if text and "moved_px" in text else 1)


@pytest.mark.parametrize("text", ["max_frob: 1", "alarms: {max_churn: 2}", "max_churn: x", "- 1", "labels: {}"])
def test_a_wrong_alarms_file_is_named(tmp_path: Any, text: str) -> None:
    path = tmp_path / "alarms.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"alarms file .*alarms\.yaml"):
        load_diff(path, {})
