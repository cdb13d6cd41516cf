"""Door to retraining on pseudo-labels. Knows flags and how to show the outcome, not how a student is made.

torch and Ray are imported when the job is known to be sound.
"""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchdet.cli.evaluate import as_document
from batchdet.cli.options import AsJson, RayAddress, Settings, job_fields
from batchdet.cli.output import print_json
from batchdet.cli.released import require_promoted, show_release
from batchdet.cli.runner import build_runner
from batchdet.config import ClusterConfig
from batchdet.progress import open_progress

if TYPE_CHECKING:
    from batchdet.retraining import Place, Retrained


TrainFile = Annotated[str | None, typer.Argument(metavar="[TRAIN.yaml]", help="The job; flags override its fields.")]
Labels = Annotated[
    list[str] | None, typer.Option("--labels", metavar="URI", help="An output of `batchdet label`; repeat.")
]
Teacher = Annotated[str | None, typer.Option(metavar="REF", help="The teacher, which the student starts from.")]
Gold = Annotated[str | None, typer.Option(metavar="COCO.json", help="Human labels to learn from as well.")]
GoldImages = Annotated[str | None, typer.Option(metavar="URI", help="Where the images of --gold are.")]
HeldOut = Annotated[
    str | None, typer.Option(metavar="COCO.json", help="Human labels to measure teacher and student on.")
]
HeldOutImages = Annotated[str | None, typer.Option(metavar="URI", help="Where its images are.")]
TrainingUri = Annotated[
    str | None, typer.Option(metavar="URI", help="Folder of this training: plan, checkpoints, steps, plot.")
]
Registry = Annotated[
    str | None, typer.Option(metavar="REGISTRY/NAME", help="The student becomes the next version here.")
]
Steps = Annotated[int | None, typer.Option(metavar="COUNT", help="Steps of the training.")]


def retrain(
    train_file: TrainFile = None,
    labels: Labels = None,
    model: Teacher = None,
    gold: Gold = None,
    images: GoldImages = None,
    held_out: HeldOut = None,
    held_out_images: HeldOutImages = None,
    output: TrainingUri = None,
    registry: Registry = None,
    steps: Steps = None,
    settings: Settings = None,
    ray: RayAddress = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a student on committed labels and gold, measure it on held-out gold, and promote it if it is no worse.

    Again after a crash it goes on from the last checkpoint. Exits 3, and says why, where the student is not promoted;
    its version stays in the registry.
    """
    flags: dict[str, Any] = {"source.outputs": labels, "start.reference": model, "length.steps": steps}
    flags |= {"gold.annotations": gold, "gold.images": images}
    flags |= {"held_out.annotations": held_out, "held_out.images": held_out_images}
    flags |= {"output": output, "registry": registry}
    from batchdet.training.job import load_retrain

    job = load_retrain(train_file, job_fields(flags, settings))
    from batchdet.retraining import retrain as run_retraining

    with open_progress(sys.stderr) as progress:
        made = run_retraining(job, build_place(ray), build_runner(ray, ClusterConfig()), progress)
    if as_json:
        print_json(retrained_document(made))
    else:
        _show(made)
    require_promoted(made.release)


def build_place(ray: str) -> "Place":
    """Where to train, of `auto`, `local`, `off` or an address; a cluster is only reached when it is ready."""
    if ray != "off":
        from batchdet.cluster.train import RayPlace

        return RayPlace(ray)
    from batchdet.retraining import InlinePlace

    return InlinePlace()


def retrained_document(made: "Retrained") -> dict[str, Any]:
    """The outcome as `--json` prints it; measures as `evaluate` prints them."""
    release = made.release
    return {
        "reference": release.reference,
        "promoted": release.promoted,
        "instead_of": release.instead_of,
        "reasons": release.reasons,
        "teacher": None if made.teacher is None else as_document(made.teacher),
        "student": None if release.candidate is None else as_document(release.candidate),
        "run_ids": made.run_ids,
        "num_gold": made.num_gold,
        "num_pseudo": made.num_pseudo,
        "num_steps": made.num_steps,
        "num_skipped": made.num_skipped,
        "losses": made.last.losses,
    }


def _show(made: "Retrained") -> None:
    facts = (
        ("learned from", f"{made.num_gold:,} gold and {made.num_pseudo:,} pseudo-labelled images"),
        ("steps", made.num_steps),
        ("pictures skipped", made.num_skipped),
    )
    measured = (("mAP of the teacher", made.teacher), ("mAP of the student", made.release.candidate))
    show_release(made.release, measured, facts)
