"""A night's job as frozen values with their defaults. Knows names and ranges, nothing of how a night goes."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from batchdet.analysis.config import AlarmConfig, DiffConfig
from batchdet.config import JobConfig
from batchdet.fields import Positive, Section
from batchdet.job_file import load_config
from batchdet.outlets import NotifyConfig
from batchdet.training.job import RetrainConfig


class RetrainWhen(Section):
    """When a student is trained, and how."""

    train: RetrainConfig
    """The retraining; each goes to a folder of its own, `output`/<night>."""
    every_days: Positive | None = 7
    """Days since the first night, or since the last retraining, after which it is due."""
    after_accepted: Positive | None = None
    """Images labelled since with an accepted detection, after which it is due."""
    relabel: bool = True
    """Label again, in what is left of the night, what a promoted student makes stale."""


class NightlyConfig(Section):
    """What is done every night.

    `job.limits.max_hours` is the time of all the night's labelling, from its begin on; a night that is begun again
    after it is over has it anew.
    """

    job: JobConfig
    """The labelling job."""
    diff: DiffConfig = Field(default_factory=lambda: DiffConfig(alarms=AlarmConfig()))
    """What counts as a change, and what is too much of it."""
    retrain: RetrainWhen | None = None
    """The retraining; null: none."""
    notify: NotifyConfig | None = None
    """Who is told; null: nobody."""

    @model_validator(mode="after")
    def _one_registry(self) -> "NightlyConfig":
        if self.retrain is not None and self.job.model.reference.rstrip("/") != self.retrain.train.registry.rstrip("/"):
            raise ValueError(
                f"job.model.reference is {self.job.model.reference}, and retrain.train.registry "
                f"{self.retrain.train.registry}: name the same, or a promoted student never labels"
            )
        return self


def load_nightly(path: str | Path | None, overrides: dict[str, Any]) -> NightlyConfig:
    """The night's job of a YAML file and overriding values; see `batchdet.job_file.load_config`."""
    return load_config(NightlyConfig, path, overrides)
