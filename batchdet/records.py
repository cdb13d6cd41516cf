"""Nouns that cross rooms: frozen values of the standard library and numpy. Knows no storage, no tensors, no cluster.

Shape shorthand: N images of a group, D detections of an image, H×W pixels.
Boxes are xyxy float32 pixels of the EXIF-applied original image unless a docstring says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
PixelArray = npt.NDArray[np.uint8]

FailureStage = Literal["read", "decode", "detect"]


@dataclass(frozen=True, slots=True)
class Twin:
    """A labelled image of an earlier run whose bytes may be those of another.

    Attributes:
        content_digest: `sha256:<hex>` of its bytes.
        run_id, shard_id: where its rows are.
    """

    image_uri: str
    run_id: str
    shard_id: int
    content_digest: str


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One listed image, unread.

    Attributes:
        uri: full URI with scheme, never percent-encoded.
        etag: the store's entity tag without quotes; None where the store has none.
        size_bytes: size as listed; None where a manifest does not say.
        last_modified: timezone-aware UTC; None where unknown.
        failed_runs: runs before this one, in a row, in which these bytes failed.
        twins: images that the same model labelled, under any policy, and that may hold the same bytes.
    """

    uri: str
    etag: str | None = None
    size_bytes: int | None = None
    last_modified: datetime | None = None
    failed_runs: int = 0
    twins: tuple[Twin, ...] = ()


@dataclass(frozen=True, slots=True)
class Shard:
    """A slice of the plan: the unit of work, of retry, of progress and of commit. Images are sorted by URI."""

    run_id: str
    shard_id: int
    images: tuple[ImageRef, ...]


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The bytes of one image as stored."""

    ref: ImageRef
    data: bytes


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of an image once its bytes were seen; each part None until then.

    Attributes:
        width, height: pixels after EXIF orientation.
        exif_orientation: 1..8 as applied; None without a valid tag.
        content_digest: `sha256:<hex>` of the stored bytes.
        decoder: name and version of what made the pixels, e.g. `pillow-13.0.0/exact`.
        size_bytes: bytes actually read.
    """

    width: int | None = None
    height: int | None = None
    exif_orientation: int | None = None
    content_digest: str | None = None
    decoder: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that ends as a failed row.

    Attributes:
        stage: where it failed.
        code: stable word, e.g. `truncated`, `not_found`, `worker_died`.
        reason: one line for people.
    """

    ref: ImageRef
    stage: FailureStage
    code: str
    reason: str
    facts: ImageFacts = field(default_factory=ImageFacts)


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image with its stored detections in canonical order (-score, label, box).

    Attributes:
        boxes: [D, 4] xyxy pixels of the EXIF-applied image, clipped to it.
        scores: [D] in (floor, 1].
        labels: [D] positions in the model's categories; never 0.
        accepted: [D] passed the policy.
        hit_detection_cap: a cap of the model or of the policy removed candidates.
        copied_from: URI of the image whose labels these are, where the bytes were labelled before.
    """

    ref: ImageRef
    facts: ImageFacts
    boxes: FloatArray
    scores: FloatArray
    labels: IntArray
    accepted: BoolArray
    hit_detection_cap: bool
    copied_from: str | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes.shape != (count, 4) or self.labels.shape != (count,) or self.accepted.shape != (count,):
            raise ValueError(
                f"expected boxes [{count}, 4], labels [{count}], accepted [{count}]; got "
                f"{list(self.boxes.shape)}, {list(self.labels.shape)}, {list(self.accepted.shape)}"
            )


@dataclass(frozen=True, slots=True)
class CopiedImage:
    """An image whose bytes are those of its twin: it needs no detector, its labels are to be copied."""

    ref: ImageRef
    facts: ImageFacts
    twin: Twin


@dataclass(frozen=True, slots=True)
class DeletedImage:
    """A known image that is no longer listed; `ref` is what was last known of it."""

    ref: ImageRef
    facts: ImageFacts = field(default_factory=ImageFacts)


ImageOutcome = LabelledImage | FailedImage | DeletedImage
"""What one row of `images` tells."""

Settled = FailedImage | CopiedImage
"""What is known of an image without a detector."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How a model takes pictures: what a reader must do to them before the labeller sees them.

    Attributes:
        fixed_size: (height, width) every image is resized to (SSD); None keeps the aspect ratio (R-CNN).
        min_size, max_size: shorter side aimed at, longer side allowed (R-CNN); ignored with fixed_size.
        size_divisible: padded sides are multiples of this.
        mean, std: per RGB channel, of pixels in [0, 1].
    """

    fixed_size: tuple[int, int] | None
    min_size: int
    max_size: int
    size_divisible: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class PreparedGroup:
    """Images of one block that share a padded shape.

    Attributes:
        pixels: [N, 3, H, W] float32, resized, normalised, zero-padded at the right and bottom.
        positions: [N] place of each image in its block, ascending.
        sizes: [N, 2] (height, width) inside the padding, as resized.
        original_sizes: [N, 2] (height, width) of the EXIF-applied image.
    """

    pixels: FloatArray
    positions: IntArray
    sizes: IntArray
    original_sizes: IntArray


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of work.

    Attributes:
        stage: one of `timeline.STAGES`.
        process: `host:pid`.
        thread: its number there.
        thread_name: for people.
        begin_ns, end_ns: nanoseconds since 1970.
        images: worked on.
    """

    stage: str
    process: str
    thread: int
    thread_name: str
    begin_ns: int
    end_ns: int
    images: int = 0


@dataclass(frozen=True, slots=True)
class PreparedBlock:
    """What one read returns: every image of the block, in plan order, either in a group or settled.

    Attributes:
        refs: the block's images in plan order.
        facts: one per image.
        settled: those that need no detector, by position in the block.
        groups: the rest, one group per padded shape, in order of first appearance.
        spans: when it was read and decoded.
    """

    refs: tuple[ImageRef, ...]
    facts: tuple[ImageFacts, ...]
    settled: Mapping[int, Settled]
    groups: tuple[PreparedGroup, ...]
    spans: tuple[Span, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of pixels held."""
        return sum(group.pixels.nbytes for group in self.groups)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Identity of a loaded model.

    Attributes:
        reference: what the job asked for.
        architecture: builder name, e.g. `ssd300_vgg16`.
        categories: names in label order; [0] is `__background__`.
        digest: `sha256:<hex>` over architecture, categories, every weight, normalisation epsilons and `input_spec`.
        input_spec: how it takes pictures.
    """

    reference: str
    architecture: str
    categories: tuple[str, ...]
    digest: str
    input_spec: InputSpec


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Files of a model on this machine.

    Attributes:
        weights: `.safetensors` or `.pth`.
        card: the registry's `model.json`; None for a bare checkpoint file.
    """

    weights: Path
    card: Path | None


@dataclass(frozen=True, slots=True)
class PlanCounts:
    """How many listed images fell into each class.

    Attributes:
        num_listed: distinct image URIs: the sum of new, changed, failed_retry, stale and unchanged.
        num_new: never labelled, or deleted meanwhile.
        num_changed: etag differs; without an etag on either side, size or time differ.
        num_failed_retry: failed last time and are tried again.
        num_unchanged: not in the manifest; failed images that are not retried among them.
        num_stale: unchanged bytes, labelled by another model or with another setting of it, that are labelled again.
        num_quarantined: of the unchanged, those that failed too often to be tried again.
        num_deleted: known and no longer listed: rows of the run, but none of its listed images.
        num_undated: listed, of any class, with neither etag nor size nor time: a later change of them cannot be seen.
        bytes_planned: of the images in the manifest, as far as the listing states sizes.
    """

    num_listed: int
    num_new: int
    num_changed: int
    num_failed_retry: int
    num_unchanged: int
    num_undated: int = 0
    bytes_planned: int = 0
    num_stale: int = 0
    num_quarantined: int = 0
    num_deleted: int = 0

    @property
    def num_planned(self) -> int:
        """Images to label."""
        return self.num_listed - self.num_unchanged

    def failures_allowed(self, max_failure_rate: float) -> float:
        """Images that may fail: a share of those not known to be bad; a file that failed before may fail again.

        One more failure is no rate, unless none at all is allowed: one bad file among a night's few holds up no night.
        """
        share = max_failure_rate * (self.num_planned - self.num_failed_retry)
        return self.num_failed_retry + (max(1.0, share) if max_failure_rate else 0.0)


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What one committed shard adds to the run; small, it goes through the driver.

    Attributes:
        failures: count by `stage:code`.
        seconds: by stage, see `timeline.STAGES`; `idle` is the detector waiting for pixels.
        bytes_read: of the images that could be read.
        num_copied: of the labelled, those whose labels were copied from an image of the same bytes.
    """

    shard_id: int
    num_images: int
    num_labelled: int
    num_empty: int
    num_detections: int
    failures: Mapping[str, int]
    seconds: Mapping[str, float]
    bytes_read: int = 0
    num_copied: int = 0

    @property
    def num_failed(self) -> int:
        """Images of the shard that ended as failed rows."""
        return sum(self.failures.values())


@dataclass(frozen=True, slots=True)
class RunRow:
    """The one row of `runs/<run_id>.parquet`; field names are the columns."""

    run_id: str
    status: Literal["complete", "partial"]
    started_at: datetime
    finished_at: datetime
    source: str
    previous_run_id: str | None
    model: str
    architecture: str
    model_digest: str
    categories: tuple[str, ...]
    policy: str
    policy_digest: str
    config: str
    num_listed: int
    num_labelled: int
    num_empty: int
    num_failed: int
    num_unchanged: int
    num_deleted: int
    num_detections: int
    images_per_second: float
    versions: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that works on a machine or cluster, or does not.

    Attributes:
        state: `warn` leaves labelling possible, `fail` does not.
        finding: one line, without secrets.
    """

    name: str
    state: Literal["ok", "warn", "fail"]
    finding: str
