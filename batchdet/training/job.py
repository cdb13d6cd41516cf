"""The whole retraining job: what is learned, where it runs, what it is measured on. Knows names and ranges only."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from batchdet.config import MAX_PIXELS, PolicyConfig, StorageConfig
from batchdet.fields import Count, Fraction, Positive, Section, Text, refuse_passwords
from batchdet.job_file import load_config
from batchdet.training.config import TrainConfig


class HeldOutConfig(Section):
    """Human labels that nothing is learned from: teacher and student are measured on them."""

    annotations: Text
    """A COCO json file."""
    images: Text
    """Folder, glob or manifest of its images. None of them is learned from, whoever labelled it."""
    every_steps: Positive | None = None
    """Steps between two looks at the student's mAP while it learns; nothing is decided by them. null: none."""


class GateConfig(Section):
    """How far the student may fall behind the teacher and the live version."""

    tolerance: Fraction = 0.0
    """Of mAP."""
    category_tolerance: Fraction = 0.02
    """Of one category's average precision, which is noisier."""
    min_objects: Positive = 20
    """Gold objects a category needs to be judged by itself."""


class CheckpointsConfig(Section):
    """What a training that was killed goes on from."""

    every_steps: Positive = 100
    """Steps between two checkpoints; the last step always has one."""
    kept: Positive = 2
    """Checkpoints kept, the newest first."""


class WorkersConfig(Section):
    """What the training takes of a Ray cluster."""

    number: Literal["auto"] | Positive = "auto"
    """Processes that share every batch; `auto`: one per GPU, and one where there is none."""
    least: Positive | None = None
    """Fewest to go on with when nodes are lost; null waits for as many as before."""
    gpus: Literal["auto"] | Annotated[int, Field(ge=0, le=1)] = "auto"
    """GPUs of each; `auto`: 1 where the cluster has GPUs."""
    cpus: Literal["auto"] | Positive = "auto"
    """CPU cores of each, and torch's threads; `auto`: its share of a node."""
    max_failures: Count = 3
    """Times the workers are begun again after one of them died."""

    @model_validator(mode="after")
    def _order(self) -> "WorkersConfig":
        if self.least is not None and (self.number == "auto" or self.least > self.number):
            raise ValueError(f"workers.least {self.least}: give workers.number, and no less")
        return self


class PicturesConfig(Section):
    """How the pictures of coming steps are read."""

    steps_ahead: Positive = 4
    """Steps whose pictures a worker reads, decodes and changes ahead of the one it learns from."""
    threads: Literal["auto"] | Positive = "auto"
    """Threads that do so; `auto`: as many as the worker has cores."""
    max_pixels: Positive = MAX_PIXELS
    """Width × height above which a picture is skipped."""
    max_failure_rate: Fraction = 0.05
    """Share of all pictures of the training that may be skipped since they vanished, changed or are damaged."""


class RetrainConfig(TrainConfig):
    """One retraining, from committed labels to a version in a registry."""

    output: Text
    """Folder of this training: plan, checkpoints, steps, plot, model. Another training needs another folder."""
    registry: Text
    """`REGISTRY/<name>`: the student becomes its next version."""
    held_out: HeldOutConfig
    """What teacher and student are measured on."""
    gate: GateConfig = Field(default_factory=GateConfig)
    """When the student goes live."""
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """What `label` should accept of the student; recorded in its card."""
    checkpoints: CheckpointsConfig = Field(default_factory=CheckpointsConfig)
    """What to go on from."""
    workers: WorkersConfig = Field(default_factory=WorkersConfig)
    """What of the cluster is used."""
    pictures: PicturesConfig = Field(default_factory=PicturesConfig)
    """How pictures are read."""
    tensorboard: bool = False
    """Write TensorBoard's event files beside the steps, to OUTPUT/tensorboard; needs batchdet[tensorboard]."""
    storage: StorageConfig = Field(default_factory=StorageConfig)
    """fsspec options: `source` for images, gold, models and registry, `output` for labels and the training's folder."""

    @model_validator(mode="after")
    def _refuse_mistakes(self) -> "RetrainConfig":
        held_out = self.held_out
        uris = {"output": self.output, "registry": self.registry}
        refuse_passwords(uris | {"held_out.annotations": held_out.annotations, "held_out.images": held_out.images})
        if self.gold is not None and self.gold.annotations == held_out.annotations:
            raise ValueError("held_out.annotations: these are gold.annotations; a model is not measured on its lessons")
        if self.workers.number != "auto" and self.workers.number > self.length.batch_images:
            raise ValueError(
                f"workers.number {self.workers.number}: more than length.batch_images {self.length.batch_images}"
            )
        if "@" in self.registry.rpartition("/")[2]:
            raise ValueError("registry: takes no version; the student becomes the next one")
        return self

    @property
    def training(self) -> TrainConfig:
        """What the weights depend on: a training goes on only with the same, and any number of workers."""
        fields = {name: getattr(self, name) for name in TrainConfig.model_fields}
        return TrainConfig.model_validate(fields)


def load_retrain(path: str | Path | None, overrides: dict[str, Any]) -> RetrainConfig:
    """The retraining job of a YAML file and overriding values; see `batchdet.job_file.load_config`."""
    return load_config(RetrainConfig, path, overrides)
