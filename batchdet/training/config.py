"""The retraining job as frozen values with their defaults. Knows names and ranges, nothing of tensors or files."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from batchdet.config import Precision, canonical_json
from batchdet.engine.detector import BACKGROUND
from batchdet.fields import (
    Amount,
    Count,
    Factor,
    Fraction,
    Inside,
    Positive,
    Section,
    Share,
    Text,
    refuse_above,
    refuse_passwords,
)
from batchdet.job_file import load_config
from batchdet.training.loss_config import LossConfig
from batchdet.training.view_config import AugmentationConfig


class SourceConfig(Section):
    """Whose labels are learned from."""

    outputs: Annotated[tuple[str, ...], Field(min_length=1)]
    """Output folders of `label`; of an image in several, the latest run's labels count."""
    runs: tuple[str, ...] = ()
    """Run ids to take labels from; empty takes every complete run. Of an image in several, the latest counts."""


class BandConfig(Section):
    """How the scores of a category are cut in three."""

    accept: Fraction = 0.7
    """Lowest score of a pseudo-label. What the run's policy did not accept is never one."""
    ignore: Fraction = 0.3
    """Lowest score of a box that is neither object nor background; below it a box is rejected."""

    @model_validator(mode="after")
    def _order(self) -> "BandConfig":
        refuse_above(("ignore", self.ignore), ("accept", self.accept), ": no score would be ignored")
        return self


class PseudoLabelConfig(Section):
    """How committed detections become targets."""

    bands: BandConfig = Field(default_factory=BandConfig)
    """The score bands of a category without its own."""
    category_bands: dict[str, BandConfig] = Field(default_factory=dict)
    """Bands by category name."""
    empty_images: Literal["keep", "drop", "sample"] = "sample"
    """What becomes of images without a pseudo-label."""
    empty_share: Fraction = 0.1
    """Share of them kept by `sample`, chosen by image URI and seed."""
    settle_overlap: Fraction = 0.5
    """An ignored box that overlaps a pseudo-label by this IoU is dropped: what is there is already said."""
    weigh_by_score: bool = False
    """Multiply each box's losses by its score."""

    def bands_of(self, category: str) -> BandConfig:
        """The score bands of a category."""
        return self.category_bands.get(category, self.bands)


class GoldConfig(Section):
    """Human labels mixed into every batch."""

    annotations: Text
    """A COCO json file."""
    images: Text
    """Folder, glob or manifest of its images."""
    share: Share = 0.25
    """Share of every batch that is gold; at least one image."""


class GuardConfig(Section):
    """When pseudo-labels are too unlike gold to learn from: boxes per image, all together and by category."""

    action: Literal["refuse", "warn", "off"] = "refuse"
    """What happens outside the band."""
    lowest: Amount = 0.5
    """Lowest ratio of pseudo-boxes per image to gold boxes per image."""
    highest: Factor = 2.0
    """Highest such ratio."""
    min_boxes: Positive = 20
    """Categories with fewer gold boxes are not judged."""


class StartConfig(Section):
    """What the training starts from."""

    weights: Literal["teacher", "backbone", "scratch"] = "teacher"
    """`teacher`: a trained detector; `backbone`: torchvision's ImageNet backbone; `scratch`: random numbers."""
    reference: str | None = None
    """The teacher: `torchvision:NAME[@WEIGHTS]`, a registry folder or a checkpoint file."""
    architecture: str | None = None
    """torchvision builder, for `backbone` and `scratch`, and for a teacher that is a bare checkpoint file."""
    categories: tuple[str, ...] | None = None
    """Names in label order, "__background__" first; null keeps the teacher's. Other ones give it a new head."""
    teacher_categories: tuple[str, ...] | None = None
    """For a teacher that is a bare checkpoint file: its own names in label order."""
    score_floor: Inside = 0.05
    """Score floor recorded with the student."""

    @model_validator(mode="after")
    def _complete(self) -> "StartConfig":
        if self.weights == "teacher" and self.reference is None:
            raise ValueError("start.reference: required with start.weights=teacher; name the teacher")
        if self.weights != "teacher" and (self.architecture is None or self.categories is None):
            raise ValueError(f"start.architecture and start.categories: required with start.weights={self.weights}")
        if self.categories is not None and self.categories[:1] != (BACKGROUND,):
            raise ValueError(f'start.categories: the first must be "{BACKGROUND}" (label 0)')
        if self.categories is not None and len(set(self.categories)) < len(self.categories):
            raise ValueError("start.categories: a name occurs twice")
        return self


class OptimiserConfig(Section):
    """How gradients move weights."""

    name: Literal["sgd", "adamw"] = "sgd"
    """torch's optimiser."""
    learning_rate: Factor = 0.005
    """Peak rate, for batches of `reference_batch` images."""
    reference_batch: Positive = 16
    """Batch size that `learning_rate` is meant for."""
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the rate grows with the batch."""
    momentum: Fraction = 0.9
    """Of SGD."""
    weight_decay: Amount = 0.0005
    """Of weights; biases and normalisation have their own."""
    norm_weight_decay: Amount = 0.0
    """Of biases and of the scale and shift of normalisation layers."""
    max_gradient_norm: Factor | None = 10.0
    """Gradients of a larger norm are shortened to it; null leaves them."""

    def peak_rate(self, batch_images: int) -> float:
        """The learning rate for a batch of this size."""
        power = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[self.scaling]
        return float(self.learning_rate * (batch_images / self.reference_batch) ** power)


class ScheduleConfig(Section):
    """The learning rate over the training."""

    warmup_steps: Count = 100
    """Steps in which the rate grows to its peak."""
    warmup_start: Fraction = 0.01
    """Share of the peak it grows from."""
    decay: Literal["cosine", "steps", "none"] = "cosine"
    """How it falls afterwards."""
    final_share: Fraction = 0.01
    """Share of the peak at which `cosine` ends."""
    milestones: tuple[Share, ...] = (0.66, 0.9)
    """Shares of the training after which `steps` multiplies the rate by `gamma`."""
    gamma: Share = 0.1
    """Factor of `steps`."""


class TeacherConfig(Section):
    """Who labels while the student learns."""

    mode: Literal["frozen", "mean_teacher"] = "frozen"
    """`frozen`: the committed labels; `mean_teacher`: the student's moving average labels each picture anew."""
    pseudo_weight: Fraction = 1.0
    """Weight of pseudo-labelled images; gold has 1."""
    ramp_steps: Count = 0
    """Steps in which that weight grows from 0."""


class LengthConfig(Section):
    """How long, in what portions, and from which seed."""

    steps: Positive | None = None
    """Steps of the optimiser; either this or `epochs`."""
    epochs: Positive | None = None
    """Passes over the pseudo-labelled images (over gold where there are none)."""
    batch_images: Positive = 16
    """Images per step, over all workers."""
    seed: Count = 0
    """Of the order, the augmentation, the samplers and new weights."""

    @model_validator(mode="after")
    def _one(self) -> "LengthConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("length.steps or length.epochs: give one of the two")
        return self


class NetworkConfig(Section):
    """How the network is run and kept."""

    precision: Precision = "fp32"
    """Arithmetic of the forward pass; losses are always fp32. fp16 and bf16 are refused on CPUs, whose bf16 gradients
    are not always right."""
    norms: Literal["frozen", "local", "sync"] = "frozen"
    """Statistics of batch normalisation: the start's; each worker's own batch; over all workers (GPU only)."""
    frozen_stages: Count = 0
    """Stages of the backbone, from the picture on, whose weights stay as they are."""
    average: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Share of the old weights kept in the moving average at each step; 0 keeps no average."""


class TrainConfig(Section):
    """One retraining."""

    source: SourceConfig | None = None
    """Committed labels; null trains on gold alone."""
    gold: GoldConfig | None = None
    """Human labels; null trains on pseudo-labels alone."""
    start: StartConfig
    """The weights to begin with."""
    pseudo_labels: PseudoLabelConfig = Field(default_factory=PseudoLabelConfig)
    """Score bands and empty images."""
    guard: GuardConfig = Field(default_factory=GuardConfig)
    """Pseudo-labels against gold."""
    losses: LossConfig = Field(default_factory=LossConfig)
    """Sampling and matching rules."""
    optimiser: OptimiserConfig = Field(default_factory=OptimiserConfig)
    """The optimiser."""
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    """The learning rate."""
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    """Changes of the pictures."""
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    """Frozen labels or a mean teacher."""
    length: LengthConfig
    """Steps, batches, seed."""
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    """Precision, normalisation, average."""

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "TrainConfig":
        uris = {f"source.outputs.{place}": uri for place, uri in enumerate(self.source.outputs if self.source else ())}
        if self.gold is not None:
            uris |= {"gold.annotations": self.gold.annotations, "gold.images": self.gold.images}
        refuse_passwords(uris | {"start.reference": self.start.reference or ""})
        if self.source is None and self.gold is None:
            raise ValueError("source or gold: give at least one of the two; there is nothing to learn from")
        if self.teacher.mode == "mean_teacher" and self.network.average == 0.0:
            raise ValueError("network.average: 0 keeps no average, and teacher.mode=mean_teacher labels with it")
        if self.start.weights == "scratch" and self.network.norms == "frozen":
            raise ValueError("network.norms: frozen keeps the statistics of random weights; choose local or sync")
        return self

    @property
    def canonical(self) -> str:
        """The job as JSON with sorted keys: what a checkpoint and a model card record."""
        return canonical_json(self.model_dump(mode="json"))


def load_train(path: str | Path | None, overrides: dict[str, Any]) -> TrainConfig:
    """The retraining job of a YAML file and overriding values by dotted path (`length.steps`).

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is out of range; names the field.
    """
    return load_config(TrainConfig, path, overrides)
