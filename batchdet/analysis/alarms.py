"""Whether a comparison of two runs is past a threshold. Knows no output and nobody to tell."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from batchdet.analysis.config import AlarmConfig
from batchdet.errors import AlarmError


@dataclass(frozen=True, slots=True)
class Alarm:
    """One threshold that was passed.

    Attributes:
        name: its field in `config.AlarmConfig`.
        value: what was measured.
        threshold: what it may be.
        sentence: both, for people.
    """

    name: str
    value: float
    threshold: float
    sentence: str


def raised(summary: Mapping[str, Any], thresholds: AlarmConfig) -> tuple[Alarm, ...]:
    """The alarms of a summary, in the order of the thresholds' fields.

    Args:
        summary: as `changes.compare_runs` makes it.
        thresholds: null ones raise nothing; a share of fewer than `min_images` images and a change of fewer than
            `min_detections` detections are not judged.
    """
    judges = (_failures, _churn, _count_drift, _score_drift, _deleted, _labelled)
    return tuple(alarm for judge in judges for alarm in judge(summary, thresholds))


def require_quiet(summary: Mapping[str, Any]) -> None:
    """Do nothing if no alarm of a summary is raised, or none was asked for.

    Raises:
        AlarmError: one is; says all.
    """
    if summary["alarms"]:
        raise AlarmError("; ".join(alarm["sentence"] for alarm in summary["alarms"]))


def _failures(summary: Mapping[str, Any], thresholds: AlarmConfig) -> Iterator[Alarm]:
    limit, found = thresholds.max_failure_rate, summary["failures"]
    if limit is not None and found["tried"] >= thresholds.min_images and found["failure_rate"] > limit:
        said = (
            f"{found['failed']} of {found['tried']} images failed that had not failed before: "
            f"{found['failure_rate']:.1%}, {limit:.1%} is allowed"
        )
        yield Alarm("max_failure_rate", found["failure_rate"], limit, said)


def _churn(summary: Mapping[str, Any], thresholds: AlarmConfig) -> Iterator[Alarm]:
    limit, found = thresholds.max_churn, summary["same_content"]
    if limit is not None and found["objects"] >= thresholds.min_detections and found["churn"] > limit:
        said = (
            f"{found['churn']:.1%} of {found['objects']} objects were added, removed or reclassed on "
            f"{found['images']} images whose bytes did not change, {limit:.1%} is allowed"
        )
        yield Alarm("max_churn", found["churn"], limit, said)


_POPULATIONS = (("relabelled", "on images labelled again"), ("runs", "from one run to the next"))


def _count_drift(summary: Mapping[str, Any], thresholds: AlarmConfig) -> Iterator[Alarm]:
    limit = thresholds.max_count_drift
    for name, where in _POPULATIONS:
        found = summary[name]["counts"]
        is_judged = min(found["images_before"], found["images_after"]) >= thresholds.min_images
        is_judged &= max(found["detections_before"], found["detections_after"]) >= thresholds.min_detections
        if limit is not None and is_judged and found["change"] is not None and abs(found["change"]) > limit:
            said = (
                f"detections an image went from {found['per_image_before']:.2f} to {found['per_image_after']:.2f} "
                f"{where}: {found['change']:+.1%}, {limit:.1%} is allowed"
            )
            yield Alarm("max_count_drift", found["change"], limit, said)


def _score_drift(summary: Mapping[str, Any], thresholds: AlarmConfig) -> Iterator[Alarm]:
    limit = thresholds.max_score_drift
    for name, where in _POPULATIONS:
        found = summary[name]["scores"]
        is_judged = min(found["num_before"], found["num_after"]) >= thresholds.min_detections
        if limit is not None and is_judged and found["ks"] > limit:
            said = (
                f"scores moved by {found['ks']:.3f} (Kolmogorov-Smirnov) {where}, their mean from "
                f"{found['mean_before']:.3f} to {found['mean_after']:.3f}; {limit:g} is allowed"
            )
            yield Alarm("max_score_drift", found["ks"], limit, said)


def _deleted(summary: Mapping[str, Any], thresholds: AlarmConfig) -> Iterator[Alarm]:
    limit, share = thresholds.max_deleted_fraction, summary["deleted_fraction"]
    standing = summary["state"]["before"]["images"]
    if limit is not None and standing >= thresholds.min_images and share > limit:
        said = f"{summary['images']['deleted']} of {standing} images went away: {share:.1%}, {limit:.1%} is allowed"
        yield Alarm("max_deleted_fraction", share, limit, said)


def _labelled(summary: Mapping[str, Any], thresholds: AlarmConfig) -> Iterator[Alarm]:
    limit, images = thresholds.min_labelled, summary["images"]
    number = images["new"] + images["relabelled"] + images["recovered"]
    if limit is not None and number < limit:
        yield Alarm("min_labelled", number, limit, f"{number} images were labelled, at least {limit} should be")
