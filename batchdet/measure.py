"""The story of a measurement: label the images of a gold set, read the labels back, judge them. Knows no Ray.

A job that asks for other pixels or other arithmetic than torchvision's is measured beside itself without: the price of
a setting is part of the answer.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchdet.analysis.query import ask_columns
from batchdet.config import (
    EXACT_SETTINGS,
    SAME_FIELDS,
    JobConfig,
    PolicyConfig,
    canonical_json,
    load_job,
    value_at,
)
from batchdet.progress import Progress
from batchdet.records import BoolArray, IntArray, ModelInfo
from batchdet.run import Manner, Runner, describe_model, label_bucket, recorded_versions
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.listing import list_images
from batchdet.training.calibration import Threshold, Wanted, calibrate_thresholds
from batchdet.training.confusion import Confusion, count_confusion
from batchdet.training.evaluation import Evaluation, Found, Score, evaluate_detections, require_pycocotools, restrict
from batchdet.training.gold import (
    Gold,
    GoldImages,
    SharedCategories,
    find_images,
    read_gold,
    require_objects,
    share_categories,
)

DEFAULTS: Mapping[str, object] = {"model.score_floor": 0.001, "plan.images_per_shard": 64}
"""What a job that measures has unless it says otherwise: every candidate counts, and gold sets are small."""

CANDIDATES = """
    SELECT image_uri, label, score, xmin, ymin, xmax, ymax, accepted FROM current_candidates
    ORDER BY image_uri, detection_index"""
IMAGES = "SELECT image_uri, status, width, height FROM current_images"


@dataclass(frozen=True, slots=True)
class Cost:
    """What settings change, beside the same job without them.

    Attributes:
        settings: the values asked for, by field.
        exact: without them.
        map_difference: asked minus exact, a fraction.
        images_with_other_labels: images whose accepted detections are of other categories or another number.
    """

    settings: Mapping[str, object]
    exact: Score
    map_difference: float
    images_with_other_labels: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a model is worth on a gold set.

    Attributes:
        labels: the output folder with what it said.
        confusion: of what the job's policy accepts.
        missing_images: names in the gold set that are not among the images; left out.
        failed_images: names whose image could not be labelled; left out.
        cost: None for a job that asks for nothing but exact pixels and arithmetic.
    """

    model: ModelInfo
    gold: Gold
    labels: str
    categories: SharedCategories
    evaluation: Evaluation
    confusion: Confusion
    missing_images: tuple[str, ...]
    failed_images: tuple[str, ...]
    cost: Cost | None


@dataclass(frozen=True, slots=True)
class _Task:
    """A gold set and where its images are, as one model meets it."""

    model: ModelInfo
    gold: Gold
    images: GoldImages
    categories: SharedCategories


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one job said.

    Attributes:
        found: of the categories the gold set knows.
        labelled: [I] bool, images of the gold set it could label.
    """

    labels: str
    found: Found
    labelled: BoolArray


def is_measurable(job: JobConfig, gold_uri: str) -> bool:
    """Whether the job's model knows any category of a gold set.

    Raises:
        UserError: the gold set or the model is unusable.
    """
    known = describe_model(job).categories[1:]
    return any(name in known for name in read_gold(gold_uri, job.storage.source).categories)


def measure_model(job: JobConfig, gold_uri: str, runner: Runner, progress: Progress) -> Measurement:
    """Label the images of a gold set and measure the labels.

    Args:
        job: `source` is where the images are, `output` a folder for labels: each model and setting has its own folder
            in it, so that a measurement that was stopped goes on and one that was made is read back.
        gold_uri: COCO json.
        runner: where to label.
        progress: told what happens, and what the gold set and the model do not share.

    Raises:
        UserError: the gold set, the images, the model or the output is unusable, or pycocotools is not installed.
        RunError: the images could not all be labelled; the same command goes on.
    """
    require_pycocotools()
    task = _open_task(job, read_gold(gold_uri, job.storage.source), progress)
    settings = {field: value_at(job.model_dump(mode="json"), field) for field in EXACT_SETTINGS}
    settings = {field: value for field, value in settings.items() if value != EXACT_SETTINGS[field]}
    asked = _answer(job, task, runner, progress)
    exact = _answer(_with(job, dict(EXACT_SETTINGS)), task, runner, progress) if settings else None
    labelled = asked.labelled if exact is None else asked.labelled & exact.labelled
    gold, found = restrict(task.gold, asked.found, labelled, task.categories.names)
    evaluation = evaluate_detections(gold, found)
    cost = None
    if exact is not None:
        _, exactly = restrict(task.gold, exact.found, labelled, gold.categories)
        cost = _cost(settings, gold, found, exactly)
    return Measurement(
        model=task.model,
        gold=task.gold,
        labels=asked.labels,
        categories=task.categories,
        evaluation=evaluation,
        confusion=count_confusion(gold, found),
        missing_images=_names(task.gold, ~task.images.found),
        failed_images=_names(task.gold, task.images.found & ~labelled),
        cost=cost,
    )


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds found on a gold set.

    Attributes:
        thresholds: by category; those without a gold object are left out.
        policy: the job's, with these thresholds.
    """

    model: ModelInfo
    gold: Gold
    categories: SharedCategories
    thresholds: Mapping[str, Threshold]
    policy: PolicyConfig


def calibrate_model(
    job: JobConfig, gold_uri: str, precision: float, min_objects: int, runner: Runner, progress: Progress
) -> Calibration:
    """Label the images of a gold set, and find the score thresholds of a policy with a wanted precision.

    Args:
        job: as for `measure_model`; its policy's other rules hold, its `score_threshold` is what a category takes that
            has too few gold objects.
        gold_uri: COCO json.
        precision: wanted of each category at IoU 0.50, a fraction.
        min_objects: gold objects a category needs.
        runner: where to label.
        progress: told what happens.

    Raises:
        UserError, RunError: as `measure_model`.
    """
    require_pycocotools()
    floor = job.model.score_floor
    task = _open_task(job, read_gold(gold_uri, job.storage.source), progress)
    # With the job's own second NMS, size rule and cap, but every score: only what those leave is ranked.
    answer = _answer(
        _with(job, {"policy.score_threshold": floor, "policy.score_thresholds": {}}), task, runner, progress
    )
    found = answer.found.select(answer.found.accepted)
    rankings = evaluate_detections(*restrict(task.gold, found, answer.labelled, task.categories.names)).rankings
    wanted = Wanted(precision, job.policy.score_threshold, min_objects, floor)
    thresholds = calibrate_thresholds(rankings, wanted)
    chosen = {name: threshold.score_threshold for name, threshold in thresholds.items()}
    return Calibration(
        model=task.model,
        gold=task.gold,
        categories=task.categories,
        thresholds=thresholds,
        policy=job.policy.model_copy(update={"score_thresholds": chosen}),
    )


def _open_task(job: JobConfig, gold: Gold, progress: Progress) -> _Task:
    model = describe_model(job)
    categories = share_categories(gold, model.categories)
    for names, said in (
        (categories.gold_only, "of the gold set are unknown to the model and not measured"),
        (categories.model_only, "of the model are not in the gold set and not measured"),
    ):
        if names:
            progress.log(f"categories {said}: {', '.join(names)}")
    if gold.void_boxes:
        progress.log(f"{gold.void_boxes} gold boxes without area are left out")
    listing = list_images(job.source, job.storage.source, job.plan.extensions, progress.listing)
    images = find_images(gold, listing, open_store(job.source, job.storage.source).uri)
    missing = _names(gold, ~images.found)
    if missing:
        progress.log(
            f"{len(missing)} of {len(gold.names)} gold images are not there and left out, such as {missing[0]}"
        )
    require_objects(gold.restrict(images.found, categories.names))
    return _Task(model, gold, images, categories)


def _with(job: JobConfig, fields: dict[str, Any]) -> JobConfig:
    return load_job(None, {**job.model_dump(), **fields})


def _answer(job: JobConfig, task: _Task, runner: Runner, progress: Progress) -> _Answer:
    """Label the gold images, or read back what the same model and settings said of them before."""
    job = _with(job, {"output": f"{job.output.rstrip('/')}/{_key(job, task.model)}"})
    label_bucket(job, runner, progress, Manner(listing=task.images.listing))
    output = open_store(job.output, job.storage.output)
    places = pa.array(task.images.uris, pa.string())
    labelled = _labelled(output, places, task.gold, progress)
    return _Answer(output.uri, _found(output, places, task), labelled)


def _key(job: JobConfig, model: ModelInfo) -> str:
    """A folder's name: equal for jobs that give the same rows."""
    tree = job.model_dump(mode="json")
    fields = {field: value_at(tree, field) for field in (*SAME_FIELDS, "source", "policy")}
    text = canonical_json({"model": model.digest, "versions": recorded_versions(), **fields})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _labelled(output: Store, places: "pa.Array[Any]", gold: Gold, progress: Progress) -> BoolArray:
    """[I] bool; says where the images are not of the size that the gold boxes were drawn on."""
    rows = _of_gold(ask_columns(output, IMAGES), places)
    is_labelled = _numpy(pc.equal(rows["status"], pa.scalar("labelled"))).astype(np.bool_)
    labelled = np.zeros(len(gold.names), np.bool_)
    place = _numpy(rows["place"]).astype(np.int64)[is_labelled]
    labelled[place] = True
    sizes = np.stack([_numpy(rows[side])[is_labelled].astype(np.int64) for side in ("height", "width")], axis=1)
    stated = gold.sizes[place]
    other = place[((stated > 0) & (stated != sizes)).any(axis=1)]
    if len(other):
        progress.log(
            f"{len(other)} images are not of the size that the gold set states, such as {gold.names[other.min()]}: "
            "are its boxes drawn on images turned otherwise?"
        )
    return labelled


def _found(output: Store, places: "pa.Array[Any]", task: _Task) -> Found:
    rows = _of_gold(ask_columns(output, CANDIDATES), places)
    gold_label = {name: place for place, name in enumerate(task.gold.categories)}
    known = np.array([gold_label.get(name, -1) for name in task.model.categories], np.int64)
    labels = known[_numpy(rows["label"]).astype(np.int64)]
    found = Found(
        images=_numpy(rows["place"]).astype(np.int64),
        labels=labels,
        boxes=np.stack([_numpy(rows[side]).astype(np.float32) for side in ("xmin", "ymin", "xmax", "ymax")], axis=1),
        scores=_numpy(rows["score"]).astype(np.float32),
        accepted=_numpy(rows["accepted"]).astype(np.bool_),
    )
    return found.select(labels >= 0)


def _of_gold(rows: pa.Table, places: "pa.Array[Any]") -> pa.Table:
    """The rows of the gold set's images, with each image's position there."""
    found = pc.index_in(rows["image_uri"], value_set=places)
    return rows.append_column("place", found).filter(pc.is_valid(found))


def _numpy(column: Any) -> Any:
    return column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()


def _names(gold: Gold, chosen: BoolArray) -> tuple[str, ...]:
    return tuple(name for name, is_chosen in zip(gold.names, chosen, strict=True) if is_chosen)


def _cost(settings: Mapping[str, object], gold: Gold, asked: Found, exact: Found) -> Cost:
    scores = [evaluate_detections(gold, found).score for found in (asked, exact)]
    other = (_counts(gold, asked) != _counts(gold, exact)).any(axis=1)
    return Cost(settings, scores[1], scores[0].map - scores[1].map, int(other.sum()))


def _counts(gold: Gold, found: Found) -> IntArray:
    """[I, C] accepted detections by image and category."""
    counts = np.zeros((len(gold.names), len(gold.categories)), np.int64)
    np.add.at(counts, (found.images[found.accepted], found.labels[found.accepted]), 1)
    return counts
