"""The job file as frozen values with their defaults. Knows names and ranges, nothing of how a job is run."""

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from batchdet.fields import (
    Amount,
    Count,
    Factor,
    Fraction,
    Inside,
    Positive,
    Section,
    Text,
    refuse_passwords,
    refuse_secrets,
)
from batchdet.job_file import build, load_config, read_yaml
from batchdet.outlets import PublishConfig

EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "gif", "tif", "tiff", "bmp", "mpo", "heic", "heif")
"""File name endings listed as images, compared without regard to case."""

EXACT_SETTINGS = {"reading.decode": "exact", "model.precision": "fp32"}
"""Fields that may change pixels or arithmetic, and the value with which rows are torchvision's own."""

SAME_FIELDS = (
    "model.score_floor",
    "model.precision",
    "model.backend",
    "plan.max_pixels",
    "plan.max_bytes",
    "reading.block_images",
    "reading.decode",
    "storage.source",
)
"""Fields of a job that change rows, beside source, model and policy."""

MAX_PIXELS = 178_956_970
"""Width × height above which a picture is taken for a bomb; Pillow's."""

BackendName = Literal["auto", "torch", "openvino", "onnxruntime"]
Precision = Literal["fp32", "fp16", "bf16"]


class ModelConfig(Section):
    """Which detector labels the images."""

    reference: Text
    """`torchvision:NAME[@WEIGHTS]`, a registry folder `URI[@version]`, or a checkpoint file (.safetensors, .pth)."""
    architecture: str | None = None
    """For a bare checkpoint file: the torchvision builder it belongs to."""
    categories: tuple[str, ...] | None = None
    """For a bare checkpoint file: names in label order, "__background__" first."""
    score_floor: Inside = 0.05
    """Candidates at or below it are not stored."""
    precision: Precision = "fp32"
    """Arithmetic of the forward pass; anything but fp32 moves scores."""
    backend: BackendName = "auto"
    """What runs the forward pass; `auto`: the fastest installed that gives torch's numbers, on a GPU torch."""


class PolicyConfig(Section):
    """Which candidates are accepted. Recorded with the run."""

    score_threshold: Fraction = 0.5
    """Lowest accepted score."""
    score_thresholds: dict[str, Fraction] = Field(default_factory=dict)
    """Per category, overriding score_threshold."""
    iou_threshold: Fraction | None = None
    """A second, stricter NMS over the accepted; null keeps the model's own NMS."""
    nms: Literal["per_class", "agnostic"] = "per_class"
    """Whether the second NMS compares boxes of different categories."""
    max_detections: Positive | None = None
    """At most so many accepted detections an image, the highest scores first."""
    min_box_side: Amount = 0.0
    """Pixels of the original image; a box with a shorter side is not accepted."""

    @property
    def canonical(self) -> str:
        """The policy as JSON with sorted keys: what the run records."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the canonical form."""
        return "sha256:" + hashlib.sha256(self.canonical.encode()).hexdigest()


SHARD_IMAGES, SHARDS_WANTED = (64, 4096), 32
"""Least and most images of a shard, and shards of a plan, where the job leaves them to `auto`."""


class PlanConfig(Section):
    """How the listing is cut into shards."""

    images_per_shard: Literal["auto"] | Positive = "auto"
    """Images per shard: the unit of retry and commit; `auto`: 4096, or as few, but at least 64, as give 32 shards, so
    that small buckets keep every labeller busy."""
    retry_failed: bool = True
    """Try images again that failed in the last run."""
    max_retries: Count = 3
    """Runs that try a failed image again; after them it rests until its bytes change, or, if it was the model that
    failed (stage `detect`), until another model or another setting of it labels."""
    relabel_stale: bool = True
    """Label images again whose labels another model made, or other settings of it (`model.precision`,
    `reading.decode`, a higher `model.score_floor`)."""
    delete_missing: bool = True
    """Commit known images that the source no longer lists as deleted, so that current views drop them. A manifest is
    taken for all there is: false for one that names a part of the images."""
    max_deleted_fraction: Fraction = 0.5
    """Share of all known images above which a vanishing is taken for a broken listing, and refused."""
    extensions: tuple[Annotated[str, Field(pattern=r"^[^./]+$")], ...] = EXTENSIONS
    """Listed endings, without dot, compared without regard to case; a manifest is taken as it is."""
    max_pixels: Positive = MAX_PIXELS
    """Width × height above which an image is refused before its pixels are decoded."""
    max_bytes: Positive = 1 << 30
    """Listed size above which an image is refused unread."""

    def shard_images(self, num_planned: int) -> int:
        """Images of every shard but the last in a plan of so many, those that are gone included."""
        if self.images_per_shard != "auto":
            return self.images_per_shard
        return max(SHARD_IMAGES[0], min(SHARD_IMAGES[1], math.ceil(num_planned / SHARDS_WANTED)))


class ReadingConfig(Section):
    """How bytes become pixels."""

    block_images: Positive = 32
    """Images fetched and decoded together."""
    prefetch_blocks: Positive = 4
    """Blocks a labeller keeps in flight ahead of its detector."""
    decode: Literal["exact", "fast"] = "exact"
    """`exact` feeds the detector the pixels that torchvision's own transform would; `fast` decodes large JPEGs reduced,
    which moves scores and boxes."""


class ClusterConfig(Section):
    """What the job takes of a Ray cluster."""

    labellers: Literal["auto"] | Positive = "auto"
    """Labellers at a time; `auto`: one per GPU, or as many as the CPUs hold."""
    gpus_per_labeller: Literal["auto"] | Fraction | Positive = "auto"
    """GPUs (or a share of one) per labeller; `auto`: 1 where the cluster has GPUs, else 0."""
    cpus_per_labeller: Literal["auto"] | Annotated[float, Field(gt=0.0)] = "auto"
    """CPU cores per labeller, and its threads; `auto`: 1, and without Ray what the labellers leave each other."""
    cpus_per_reader: Annotated[float, Field(gt=0.0)] = 1
    """CPU cores per read task."""
    readers: Literal["auto", "threads", "tasks"] = "auto"
    """Where images are read: the labeller's own threads, or Ray tasks anywhere; `auto`: tasks for GPU labellers."""


class LimitsConfig(Section):
    """When a run gives up."""

    max_failure_rate: Fraction = 0.05
    """Share of failed images above which the run exits 1; one more failure is no share, unless this is 0."""
    max_attempts_per_shard: Positive = 3
    """Times a shard may lose its labeller, or a block its reader, before it is bisected to the image that kills it."""
    lease_seconds: Annotated[float, Field(ge=3.0, le=86_400.0)] = 120.0
    """Seconds after its last sign of life for which a run still holds the output against others."""
    max_hours: Factor | None = None
    """Hours after which no shard is begun; the run ends as partial, and the next goes on with it."""


class PricesConfig(Section):
    """What things cost, in dollars; `plan` adds up those that are given."""

    per_hour: Annotated[float, Field(ge=0.0)] | None = None
    """An hour of the whole cluster."""
    per_1000_gets: Annotated[float, Field(ge=0.0)] | None = None
    """A thousand GET requests."""
    per_gib: Annotated[float, Field(ge=0.0)] | None = None
    """A GiB read from the source."""


class StorageConfig(Section):
    """fsspec storage options. Secrets belong in the environment, and are refused here."""

    source: dict[str, Any] = Field(default_factory=dict)
    """For the images."""
    output: dict[str, Any] = Field(default_factory=dict)
    """For the output."""

    @model_validator(mode="after")
    def _refuse_secrets(self) -> "StorageConfig":
        refuse_secrets("storage", {"source": self.source, "output": self.output})
        return self


class JobConfig(Section):
    """One labelling job."""

    source: Text
    """Prefix, glob or manifest of images."""
    output: Text
    """Folder for the Parquet tables."""
    model: ModelConfig
    """The detector."""
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """What is accepted."""
    plan: PlanConfig = Field(default_factory=PlanConfig)
    """How the listing is cut."""
    reading: ReadingConfig = Field(default_factory=ReadingConfig)
    """How images are read."""
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    """What of the cluster is used."""
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    """When to give up."""
    prices: PricesConfig = Field(default_factory=PricesConfig)
    """What `plan` counts with."""
    storage: StorageConfig = Field(default_factory=StorageConfig)
    """fsspec options."""
    publish: PublishConfig | None = None
    """A table format that complete runs are published to; null: none."""

    @model_validator(mode="after")
    def _refuse_passwords(self) -> "JobConfig":
        places = {"source": self.source, "output": self.output, "model.reference": self.model.reference}
        refuse_passwords(places)
        return self

    @model_validator(mode="after")
    def _refuse_void_policy(self) -> "JobConfig":
        floor = self.model.score_floor
        thresholds = {"policy.score_threshold": self.policy.score_threshold} | {
            f"policy.score_thresholds.{name}": value for name, value in self.policy.score_thresholds.items()
        }
        for field, value in thresholds.items():
            if value < floor:
                raise ValueError(
                    f"{field} is {value}, under model.score_floor {floor}: no candidate below the floor is kept; "
                    "lower model.score_floor or raise the threshold"
                )
        return self


class PolicyFile(Section):
    """A policy by itself."""

    policy: PolicyConfig
    """What is accepted."""


def value_at(tree: Any, field: str) -> Any:
    """The value of a dotted field in the plain tree of a job."""
    for name in field.split("."):
        tree = tree[name]
    return tree


def recorded_at(tree: Any, field: str, usual: Any) -> Any:
    """A field of a recorded job; what it meant before there was one, where it is missing."""
    try:
        return value_at(tree, field)
    except KeyError:
        return usual


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def load_job(path: str | Path | None, overrides: dict[str, Any]) -> JobConfig:
    """The labelling job of a file and overriding values; see `load_config`."""
    return load_config(JobConfig, path, overrides)


def load_policy(path: str | Path) -> PolicyConfig:
    """Read a policy file: the fields of a job's `policy` section, by themselves or under `policy:`.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is out of range; names both.
    """
    tree = read_yaml(path, "policy file")
    tree = tree if set(tree) == {"policy"} else {"policy": tree}
    return build(PolicyFile, tree, f"policy file {path}: ").policy
