"""The story of a retraining: settle what is learned, learn it, measure it on held-out gold, release it. Knows no Ray.

Each part leaves something that the next start of the same command finds: a plan, checkpoints, a packed model, labels of
the held-out images, a version in the registry.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from batchdet.config import EXTENSIONS, JobConfig, load_job
from batchdet.engine.card import pack_model
from batchdet.engine.checkpoint import identify_model
from batchdet.errors import OpenShardsError, OutputError, StorageError
from batchdet.measure import DEFAULTS, Measurement, is_measurable, measure_model
from batchdet.progress import Progress
from batchdet.release import Release, Verdicts, release_trained
from batchdet.run import Runner, recorded_versions
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.ledger import Ledger
from batchdet.storage.listing import list_images
from batchdet.storage.registry import CARD_NAME, CHECKPOINT_SUFFIXES, open_model, promoted_version
from batchdet.teaching import Classroom, InlineClassroom, begin, open_student
from batchdet.training.checkpoints import newest_checkpoint
from batchdet.training.curves import draw_training
from batchdet.training.evaluation import require_pycocotools
from batchdet.training.events import require_tensorboard
from batchdet.training.gate import Tolerances
from batchdet.training.gold import Gold, GoldImages, find_images, read_gold, require_objects, share_categories
from batchdet.training.gold_targets import count_gold, gold_targets
from batchdet.training.guard import guard
from batchdet.training.job import RetrainConfig
from batchdet.training.known_bytes import content_digests
from batchdet.training.loop import Trainer
from batchdet.training.plan import (
    PlanFacts,
    TrainPlan,
    gold_table,
    no_pseudo_labels,
    read_plan,
    require_same_training,
    write_plan,
)
from batchdet.training.pseudo_labels import PseudoLabels, read_pseudo_labels
from batchdet.training.steps import StepLine, read_steps
from batchdet.training.telling import StepTeller

MODEL, MEASURED, PLOT = "model", "measured", "curves.png"


class Place(Classroom, Protocol):
    """Where a training runs, made ready once for all of a retraining."""

    def ready(self, job: RetrainConfig, progress: Progress) -> AbstractContextManager[None]:
        """Be able to `teach` and to label inside the block.

        Raises:
            UserError: the cluster cannot be reached, has no room, or has no GPUs for what only they do.
        """


class InlinePlace(InlineClassroom):
    """This process; nothing has to be made ready."""

    def ready(self, job: RetrainConfig, progress: Progress) -> AbstractContextManager[None]:
        """See `Place`."""
        self.device(job)
        return nullcontext()


@dataclass(frozen=True, slots=True)
class Retrained:
    """What a retraining made.

    Attributes:
        release: the student's version, what it and its rivals measured, and whether it is live.
        teacher: measured on the same gold; None without a teacher.
        run_ids: of the labels learned from.
        num_gold, num_pseudo: images.
        num_steps: taken.
        num_skipped: pictures left out of their steps.
        last: the last step.
    """

    release: Release
    teacher: Measurement | None
    run_ids: tuple[str, ...]
    num_gold: int
    num_pseudo: int
    num_steps: int
    num_skipped: int
    last: StepLine


def retrain(job: RetrainConfig, place: Place, runner: Runner, progress: Progress) -> Retrained:
    """Train a student, measure it on held-out gold, put it into the registry, and make it live if it is no worse.

    Args:
        job: the retraining.
        place: where the training runs.
        runner: where the held-out images are labelled.
        progress: told what happens.

    Raises:
        UserError, DriftError: the job, its labels, gold, models or folders are unusable.
        RunError: the training or a measurement did not end; the same command goes on.
    """
    require_pycocotools()
    if job.tensorboard:
        require_tensorboard()
    output = _open_output(job)
    with place.ready(job, progress):
        plan = _open_plan(job, output, progress)
        place.teach(job, StepTeller(progress))
        trainer = _finished(job, plan, output)
        _pack(job, plan, trainer, output)
        student = _measure(job, output.child_uri(MODEL), runner, progress)
        reference = plan.facts.teacher
        teacher = None if reference is None else _measure_rival(job, reference, runner, progress)
        steps = read_steps(output)
        _plot(output, steps, {"teacher": teacher, "student": student}, progress)
        verdicts = Verdicts(student, teacher, _tolerances(job))

        def pack(metrics: Mapping[str, Any]) -> dict[str, bytes]:
            return _files(job, plan, trainer, metrics)

        release = release_trained(
            job.registry,
            job.storage.source,
            verdicts,
            pack,
            lambda reference: _measure_rival(job, reference, runner, progress),
        )
    return Retrained(
        release=release,
        teacher=teacher,
        run_ids=tuple(sorted(plan.facts.policies)),
        num_gold=plan.gold.num_rows,
        num_pseudo=plan.pseudo.num_rows,
        num_steps=trainer.step,
        num_skipped=sum(len(line.skipped) for line in steps),
        last=steps[-1],
    )


def _open_output(job: RetrainConfig) -> Store:
    try:
        output = open_store(job.output, job.storage.output)
        output.probe_writable()
    except StorageError as error:
        raise OutputError(f"output {error}; name a folder that can be written") from error
    return output


def _open_plan(job: RetrainConfig, output: Store, progress: Progress) -> TrainPlan:
    """The plan of a training that was begun here, or a new one."""
    plan = read_plan(output)
    if plan is None:
        plan = _new_plan(job, progress)
        plan.order(plan.effective(job.training))
        write_plan(output, plan)
    else:
        require_same_training(plan, job.training)
        progress.log(f"going on with the training in {output.uri}")
    progress.log(f"learning from {plan.gold.num_rows:,} gold and {plan.pseudo.num_rows:,} pseudo-labelled images")
    return plan


def _new_plan(job: RetrainConfig, progress: Progress) -> TrainPlan:
    teacher = _pinned(job)
    config = job.training
    config = config.model_copy(update={"start": config.start.model_copy(update={"reference": teacher})})
    student = open_student(config, job)
    held_out = _held_out_uris(job, student.categories, progress)
    gold = None if config.gold is None else read_gold(config.gold.annotations, job.storage.source)
    gold_rows = gold_table((), ())
    known = content_digests(held_out, job.storage.source)
    if gold is not None and config.gold is not None:
        uris = _find(job, gold, config.gold.images, progress).uris
        own, secret_digests = content_digests(uris, job.storage.source), set(known.values())
        secret = {*held_out, *(uri for uri, digest in own.items() if digest in secret_digests)}
        gold_rows = gold_table([None if uri in secret else uri for uri in uris], gold_targets(gold, student.categories))
        known |= own
    labels = _labels(job, student.categories)
    if labels is not None and gold is not None:
        for drift in guard(labels.counts, count_gold(gold), config.guard):
            progress.log(f"pseudo-labels are unlike gold: {drift}")
    facts = PlanFacts(
        job=json.loads(job.training.canonical),
        teacher=teacher,
        teacher_digest=None if student.parent is None else student.parent.digest,
        categories=student.categories,
        policies={} if labels is None else _policies(job, labels.run_ids),
        gold_digest=None if gold is None else gold.digest,
    )
    return TrainPlan(facts, gold_rows, _learned(labels, {*held_out, *known}, set(known.values())))


def _pinned(job: RetrainConfig) -> str | None:
    """The teacher's reference, with the version that is live now where it names none."""
    reference = job.start.reference
    if job.start.weights != "teacher" or reference is None:
        return None
    if reference.startswith("torchvision:") or reference.lower().endswith(CHECKPOINT_SUFFIXES):
        return reference
    folder, wanted = open_model(reference, job.storage.source)
    if wanted is not None or folder.exists(CARD_NAME):
        return reference
    return f"{folder.uri}@{promoted_version(folder)}"


def _held_out_uris(job: RetrainConfig, categories: Sequence[str], progress: Progress) -> tuple[str | None, ...]:
    """The URI of each held-out image; what could not be measured on in the end is refused now."""
    gold = read_gold(job.held_out.annotations, job.storage.source)
    shared = share_categories(gold, categories)
    images = _find(job, gold, job.held_out.images, progress)
    require_objects(gold.restrict(images.found, shared.names))
    return images.uris


def _find(job: RetrainConfig, gold: Gold, images: str, progress: Progress) -> GoldImages:
    """Where the images of a gold set are."""
    listing = list_images(images, job.storage.source, EXTENSIONS, progress.listing)
    return find_images(gold, listing, open_store(images, job.storage.source).uri)


def _outputs(job: RetrainConfig) -> list[Store]:
    return [open_store(uri, job.storage.output) for uri in (job.source.outputs if job.source else ())]


def _labels(job: RetrainConfig, categories: Sequence[str]) -> PseudoLabels | None:
    if job.source is None:
        return None
    return read_pseudo_labels(_outputs(job), job.source.runs, categories, job.pseudo_labels, job.length.seed)


def _policies(job: RetrainConfig, run_ids: Sequence[str]) -> dict[str, Any]:
    rows = [row for output in _outputs(job) for row in Ledger(output).complete_runs()]
    return {row.run_id: json.loads(row.policy) for row in rows if row.run_id in run_ids}


def _learned(labels: PseudoLabels | None, uris: set[str | None], digests: set[str]) -> Any:
    """Pseudo-labelled images that are neither gold nor held out, nor copies of such."""
    if labels is None:
        return no_pseudo_labels()
    named = (labels.table.column(name).to_pylist() for name in ("image_uri", "content_digest"))
    pairs = enumerate(zip(*named, strict=True))
    return labels.table.take([place for place, (uri, digest) in pairs if uri not in uris and digest not in digests])


def _finished(job: RetrainConfig, plan: TrainPlan, output: Store) -> Trainer:
    """The training after its last step, on the CPU."""
    trainer = begin(plan, plan.effective(job.training), job, torch.device("cpu"))
    state = newest_checkpoint(output)
    if state is not None:
        trainer.load_state(state)
    if trainer.step < trainer.num_steps:
        raise OpenShardsError(f"{trainer.step} of {trainer.num_steps} steps are kept; run the same command again")
    return trainer


def _pack(job: RetrainConfig, plan: TrainPlan, trainer: Trainer, output: Store) -> None:
    for name, data in _files(job, plan, trainer, {}).items():
        output.write_bytes(f"{MODEL}/{name}", data)


def _files(job: RetrainConfig, plan: TrainPlan, trainer: Trainer, metrics: Mapping[str, Any]) -> dict[str, bytes]:
    info = identify_model(trainer.model, job.registry, trainer.architecture, plan.facts.categories)
    return pack_model(trainer.model, info, _lineage(job, plan, trainer), metrics, job.policy)


def _lineage(job: RetrainConfig, plan: TrainPlan, trainer: Trainer) -> dict[str, Any]:
    facts = plan.facts
    return {
        "parent": None if facts.teacher is None else {"model": facts.teacher, "digest": facts.teacher_digest},
        "run_ids": sorted(facts.policies),
        "policies": facts.policies,
        "bands": job.pseudo_labels.model_dump(mode="json"),
        "gold": None if job.gold is None else {"uri": job.gold.annotations, "digest": facts.gold_digest},
        "held_out": job.held_out.annotations,
        "images": {"gold": plan.gold.num_rows, "pseudo_labelled": plan.pseudo.num_rows},
        "config": facts.job,
        "steps": trainer.step,
        "versions": recorded_versions(),
    }


def _measure(job: RetrainConfig, reference: str, runner: Runner, progress: Progress) -> Measurement:
    progress.log(f"measuring {reference} on {job.held_out.annotations}")
    return measure_model(_measuring_job(job, reference), job.held_out.annotations, runner, progress)


def _measure_rival(job: RetrainConfig, reference: str, runner: Runner, progress: Progress) -> Measurement | None:
    """None where it knows no category of the held-out gold."""
    if not is_measurable(_measuring_job(job, reference), job.held_out.annotations):
        progress.log(
            f"{reference} knows no category of {job.held_out.annotations}: the student is not compared with it"
        )
        return None
    return _measure(job, reference, runner, progress)


def _measuring_job(job: RetrainConfig, reference: str) -> JobConfig:
    fields: dict[str, Any] = {
        "source": job.held_out.images,
        "output": f"{job.output.rstrip('/')}/{MEASURED}",
        "model.reference": reference,
        "storage": job.storage.model_dump(),
    }
    if reference == job.start.reference and reference.lower().endswith(CHECKPOINT_SUFFIXES):
        fields |= {"model.architecture": job.start.architecture, "model.categories": job.start.teacher_categories}
    return load_job(None, fields | dict(DEFAULTS))


def _tolerances(job: RetrainConfig) -> Tolerances:
    return Tolerances(job.gate.tolerance, job.gate.category_tolerance, job.gate.min_objects)


def _plot(
    output: Store, steps: Sequence[StepLine], measured: Mapping[str, Measurement | None], progress: Progress
) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        progress.log(f"no {PLOT}: pip install 'batchdet[evaluate]'")
        return
    losses = {name: [line.losses[name] for line in steps] for name in steps[-1].losses}
    scores = {name: found.evaluation.score.map for name, found in measured.items() if found is not None}
    looks = {line.step: line.map for line in steps if line.map is not None}
    output.write_bytes(PLOT, draw_training([line.step for line in steps], losses, scores, looks))
