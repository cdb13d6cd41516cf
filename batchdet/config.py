"""The job file as frozen values with their defaults. Knows names and ranges, nothing of how a job is run."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from batchdet.errors import ConfigError

EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "gif", "tif", "tiff", "bmp", "mpo", "heic", "heif")
"""File name endings listed as images, compared without regard to case."""

_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/@\s]*:[^/@\s]*@", re.IGNORECASE)
"""The start of a URL that carries a user's password."""

_SECRET_URL = re.compile(
    r"^[a-z]+://[^/\s]*@|://hooks\.slack\.com/|[?&](?:[\w-]*(?:token|secret|passw|sig|key)[\w-]*|code)=", re.IGNORECASE
)
"""A URL whose user, path or query lets whoever knows it in."""

ANONYMOUS = ("anon", "cloud", "google_default", "browser")
"""Values of gcsfs's `token` that name a way to log in and hold no secret."""

_SECRET = re.compile(
    r"secret|passw|passphrase|token|authorization|cookie|privatekey|accountkey|customerkey|accesskey|apikey|sas|"
    r"connectionstring|credential|^key$"
)

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

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
BackendName = Literal["auto", "torch", "openvino", "onnxruntime"]


class Section(BaseModel):
    """Part of a job: frozen, unknown keys refused, a docstring under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Config = TypeVar("Config", bound=Section)


class ModelConfig(Section):
    """Which detector labels the images."""

    reference: str = Field(min_length=1)
    """`torchvision:NAME[@WEIGHTS]`, a registry folder `URI[@version]`, or a checkpoint file (.safetensors, .pth)."""
    architecture: str | None = None
    """For a bare checkpoint file: the torchvision builder it belongs to."""
    categories: tuple[str, ...] | None = None
    """For a bare checkpoint file: names in label order, "__background__" first."""
    score_floor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """Candidates at or below it are not stored."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
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
    min_box_side: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
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
    max_retries: Annotated[int, Field(ge=0)] = 3
    """Runs that try a failed image again; after them it rests until its bytes change."""
    relabel_stale: bool = True
    """Label images again whose labels another model made, or other settings of it (`model.precision`,
    `reading.decode`, a higher `model.score_floor`)."""
    delete_missing: bool = True
    """Commit known images that the source no longer lists as deleted, so that current views drop them."""
    max_deleted_fraction: Fraction = 0.5
    """Share of all known images above which a vanishing is taken for a broken listing, and refused."""
    extensions: tuple[Annotated[str, Field(pattern=r"^[^./]+$")], ...] = EXTENSIONS
    """Listed endings, without dot, compared without regard to case; a manifest is taken as it is."""
    max_pixels: Positive = 178_956_970
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
    gpus_per_labeller: Literal["auto"] | Annotated[float, Field(ge=0.0, le=1.0)] | Annotated[int, Field(ge=1)] = "auto"
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
    """Share of failed images above which the run exits 1."""
    max_attempts_per_shard: Positive = 3
    """Times a shard may lose its labeller, or a block its reader, before it is bisected to the image that kills it."""
    lease_seconds: Annotated[float, Field(ge=3.0, le=86_400.0)] = 120.0
    """Seconds after its last sign of life for which a run still holds the output against others."""
    max_hours: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """Hours after which no shard is begun; the run ends as partial, and the next goes on with it."""


class PricesConfig(Section):
    """What things cost, in dollars; `plan` adds up those that are given."""

    per_hour: Annotated[float, Field(ge=0.0)] | None = None
    """An hour of the whole cluster."""
    per_1000_gets: Annotated[float, Field(ge=0.0)] | None = None
    """A thousand GET requests."""
    per_gib: Annotated[float, Field(ge=0.0)] | None = None
    """A GiB read from the source."""


class CompareConfig(Section):
    """When two boxes of an image are one object, and when it counts as changed."""

    iou_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Least intersection over union of a box before and a box after that are one object."""
    moved_iou: Fraction = 0.9
    """An object has moved if its boxes have less intersection over union."""
    moved_px: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
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
    max_count_drift: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = 0.3
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


class StorageConfig(Section):
    """fsspec storage options. Secrets belong in the environment, and are refused here."""

    source: dict[str, Any] = Field(default_factory=dict)
    """For the images."""
    output: dict[str, Any] = Field(default_factory=dict)
    """For the output."""

    @model_validator(mode="after")
    def _refuse_secrets(self) -> "StorageConfig":
        for path in _secret_paths({"source": self.source, "output": self.output}):
            raise ValueError(f"storage.{path} looks like a secret; put it in the environment instead")
        return self


class PublishConfig(Section):
    """Committed files as tables of a format that has transactions and time travel."""

    format: Literal["delta", "iceberg"]
    """`delta`: logs beside the files, in the output; `iceberg`: metadata in `uri`, tables in a catalog."""
    uri: str | None = None
    """Iceberg: folder for the tables' metadata; null: `OUTPUT/_iceberg`. Delta's log lies where the files are."""
    catalog: dict[str, str] = Field(default_factory=dict)
    """Iceberg: properties of pyiceberg's catalog (`type`, `uri`, …); secrets belong in the environment, as
    `PYICEBERG_CATALOG__<NAME>__<PROPERTY>`."""
    catalog_name: str = Field(default="default", min_length=1)
    """Iceberg: the catalog's name, as pyiceberg's configuration has it."""
    namespace: str = Field(default="batchdet", pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")
    """Iceberg: namespace of the tables `images`, `detections` and `runs`; an output needs one of its own."""

    @model_validator(mode="after")
    def _refuse_secrets(self) -> "PublishConfig":
        for path in _secret_paths({"catalog": self.catalog, "uri": self.uri or ""}):
            raise ValueError(f"publish.{path} looks like a secret; put it in the environment instead")
        if self.format == "delta" and (self.uri or self.catalog):
            raise ValueError("publish: delta takes neither uri nor catalog: its log lies beside the files")
        return self


class NotifyConfig(Section):
    """Who is told how a night went, by a webhook."""

    url_env: str | None = Field(default=None, repr=False)
    """Name of the environment variable that holds the webhook's URL."""
    url: str | None = Field(default=None, repr=False)
    """The URL itself, where it holds no secret; those of Slack do."""
    format: Literal["slack", "json"] = "slack"
    """`slack`: text and blocks; `json`: the night's summary as it is stored."""
    timeout_s: Annotated[float, Field(gt=0.0, le=60.0)] = 10.0
    """Seconds to connect, and again to answer; tried twice at most."""

    @model_validator(mode="after")
    def _refuse_secrets(self) -> "NotifyConfig":
        if (self.url is None) == (self.url_env is None):
            raise ValueError("notify: give one of url_env and url")
        # Said without the value, as pydantic would not: it may be the secret.
        if self.url_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.url_env):
            raise ValueError("notify.url_env is the name of an environment variable, not the URL")
        if self.url is not None and not re.match(r"https?://[^/\s]+", self.url):
            raise ValueError("notify.url: expected http:// or https://")
        if self.url is not None and _SECRET_URL.search(self.url):
            raise ValueError("notify.url holds a secret; put it in the environment and name that with notify.url_env")
        return self


class JobConfig(Section):
    """One labelling job."""

    source: str = Field(min_length=1)
    """Prefix, glob or manifest of images."""
    output: str = Field(min_length=1)
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


class DiffConfig(Section):
    """What `batchdet diff` goes by."""

    compare: CompareConfig = Field(default_factory=CompareConfig)
    """What counts as a change."""
    alarms: AlarmConfig | None = None
    """What is too much of it; null judges nothing."""


class PolicyFile(Section):
    """A policy by itself."""

    policy: PolicyConfig
    """What is accepted."""


def refuse_passwords(uris: Mapping[str, str]) -> None:
    """Keep secrets out of what is recorded and shown.

    Args:
        uris: by field.

    Raises:
        ValueError: one carries a user's password; names its field.
    """
    for field, uri in uris.items():
        if _PASSWORD.match(uri):
            raise ValueError(f"{field} holds a password; put credentials in the environment instead")


def value_at(tree: Any, field: str) -> Any:
    """The value of a dotted field in the plain tree of a job."""
    for name in field.split("."):
        tree = tree[name]
    return tree


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def load_job(path: str | Path | None, overrides: dict[str, Any]) -> JobConfig:
    """The labelling job of a file and overriding values; see `load_config`."""
    return load_config(JobConfig, path, overrides)


def load_config(form: type[Config], path: str | Path | None, overrides: dict[str, Any]) -> Config:
    """Build a job from a YAML file and overriding values by dotted path (`policy.score_threshold`).

    Args:
        form: the kind of job.
        path: the file; None where the overrides say it all.
        overrides: dotted path to value.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is out of range; names the field.
    """
    tree = _read_yaml(Path(path)) if path is not None else {}
    for dotted, value in overrides.items():
        _set_dotted(tree, dotted, value)
    try:
        return form.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, tree)) from error


def load_policy(path: str | Path) -> PolicyConfig:
    """Read a policy file: the fields of a job's `policy` section, by themselves or under `policy:`.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is out of range; names both.
    """
    tree = _read_yaml(Path(path), "policy file")
    tree = tree if set(tree) == {"policy"} else {"policy": tree}
    try:
        return PolicyFile.model_validate(tree).policy
    except ValidationError as error:
        raise ConfigError(f"policy file {path}: {_first_problem(error, tree)}") from error


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
        tree = _read_yaml(Path(alarms), "alarms file")
        tree = {"alarms": {}, **tree} if set(tree) <= {"alarms", "compare"} else {"alarms": tree}
    for dotted, value in overrides.items():
        _set_dotted(tree, dotted, value)
    try:
        return DiffConfig.model_validate(tree)
    except ValidationError as error:
        where = "" if alarms is None else f"alarms file {alarms}: "
        raise ConfigError(f"{where}{_first_problem(error, tree)}") from error


def _read_yaml(path: Path, kind: str = "job file") -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{kind} {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{kind} {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{kind} {path}: expected fields, got {type(tree).__name__}")
    return tree


def _set_dotted(tree: dict[str, Any], dotted: str, value: object) -> None:
    *parents, leaf = dotted.split(".")
    node = tree
    for name in parents:
        child = node.setdefault(name, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{dotted}: {name} is a single value, it has no fields")
        node = child
    node[leaf] = value


def _first_problem(error: ValidationError, tree: dict[str, Any]) -> str:
    first, *others = error.errors()
    where = _field_path(first["loc"], tree, is_missing=first["type"] == "missing")
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown field"
    if first["type"] == "missing":
        return f"{where}: required; give it in the job file, as a flag or with --set {where}=…"
    if first["type"] == "value_error":
        return str(first["msg"]).removeprefix("Value error, ")
    branches = [first, *(other for other in others if _field_path(other["loc"], tree, is_missing=False) == where)]
    return f"{where}: {' or '.join(branch['msg'] for branch in branches)} (got {first['input']!r})"


def _field_path(loc: tuple[int | str, ...], tree: dict[str, Any], is_missing: bool) -> str:
    """The dotted field of an error: what of its place the job has, without the union branches pydantic adds."""
    node: Any = tree
    path = []
    for part in loc[:-1] if is_missing else loc:
        is_named = isinstance(node, dict) and part in node
        if is_named or (isinstance(node, list) and isinstance(part, int)):
            node = node[part]
            path.append(part)
    return ".".join(map(str, [*path, loc[-1]] if is_missing else path))


def _secret_paths(options: Any, path: str = "") -> list[str]:
    """Dotted paths of values that look like secrets, judged by their names and by passwords inside URLs."""
    if isinstance(options, dict):
        found = [f"{path}.{name}".lstrip(".") for name, value in options.items() if _is_secret(str(name), value)]
        return found or [deep for name, value in options.items() for deep in _secret_paths(value, f"{path}.{name}")]
    if isinstance(options, list):
        return [deep for place, value in enumerate(options) for deep in _secret_paths(value, f"{path}.{place}")]
    return [path.lstrip(".")] if isinstance(options, str) and _PASSWORD.match(options) else []


def _is_secret(name: str, value: object) -> bool:
    plain = re.sub(r"[^a-z]", "", name.lower())
    return bool(value) and not isinstance(value, bool) and value not in ANONYMOUS and bool(_SECRET.search(plain))
