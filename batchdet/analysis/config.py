"""What a comparison of two runs goes by. Knows names and ranges, nothing of how runs are compared."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from batchdet.fields import Amount, Fraction, Positive, Section, Share
from batchdet.job_file import build, read_yaml, with_overrides


class CompareConfig(Section):
    """When two boxes of an image are one object, and when it counts as changed."""

    iou_threshold: Share = 0.5
    """Least intersection over union of a box before and a box after that are one object."""
    moved_iou: Fraction = 0.9
    """An object has moved if its boxes have less intersection over union."""
    moved_px: Amount = 1.0
    """An object has moved if a side of its box lies farther from where it was, in pixels."""
    rescored_by: Fraction = 0.05
    """An object is rescored if its score differs by more."""
    keep_unchanged: bool = False
    """Whether boxes that did not change have a row in the change table; they are counted either way."""
    memory_mib: Annotated[int, Field(ge=64)] = 2048
    """MiB that joining and sorting may hold; more goes to a temporary folder."""


class AlarmConfig(Section):
    """When a comparison of two runs is worth waking somebody; null turns an alarm off."""

    max_failure_rate: Fraction | None = 0.05
    """Share of failed images among those labelled or failed that had not failed before."""
    max_churn: Fraction | None = 0.3
    """Share of objects added, removed or reclassed, on images whose bytes did not change."""
    max_count_drift: Amount | None = 0.3
    """Relative change of accepted detections an image: on images labelled again, and from one run to the next."""
    max_score_drift: Fraction | None = 0.2
    """Kolmogorov and Smirnov's distance of accepted scores: on images labelled again, and from one run to the next."""
    max_deleted_fraction: Fraction | None = 0.2
    """Share of all images that went away."""
    min_labelled: Positive | None = None
    """Images that have to be labelled."""
    min_images: Positive = 20
    """Shares of fewer images are not judged."""
    min_detections: Positive = 100
    """Changes of fewer detections are not judged."""


class DiffConfig(Section):
    """What `batchdet diff` goes by."""

    compare: CompareConfig = Field(default_factory=CompareConfig)
    """What counts as a change."""
    alarms: AlarmConfig | None = None
    """What is too much of it; null judges nothing."""


def load_diff(alarms: str | Path | None, overrides: dict[str, Any]) -> DiffConfig:
    """What a comparison goes by: a file of alarms and overriding values.

    Args:
        alarms: the fields of `alarms` by themselves, or under `alarms:` beside `compare:`; None for no file, and no
            alarms unless an override names one.
        overrides: dotted path (`alarms.max_churn`, `compare.iou_threshold`) to value.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is out of range; names the field.
    """
    tree: dict[str, Any] = {}
    if alarms is not None:
        tree = read_yaml(alarms, "alarms file")
        tree = {"alarms": {}, **tree} if set(tree) <= {"alarms", "compare"} else {"alarms": tree}
    where = "" if alarms is None else f"alarms file {alarms}: "
    return build(DiffConfig, with_overrides(tree, overrides), where)
