"""Door to thresholds for a wanted precision. Knows flags and the policy file, not how thresholds are found.

torch and Ray are imported inside the command: a mistake in the job is said before they have loaded.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from batchdet.cli.evaluate import GoldUri, ImagesUri, LabelsUri, Model, labels_folder
from batchdet.cli.options import AsJson, RayAddress, Settings, read_settings
from batchdet.cli.output import print_json, print_table
from batchdet.cli.runner import build_runner
from batchdet.config import load_job
from batchdet.errors import ConfigError
from batchdet.progress import open_progress

if TYPE_CHECKING:
    from batchdet.measure import Calibration
    from batchdet.training.calibration import Threshold

COLUMNS = ("category", "threshold", "precision", "95% interval", "recall", "accepted", "gold objects", "outcome")


def calibrate(
    model: Model,
    gold: GoldUri,
    images: ImagesUri,
    precision: Annotated[
        float,
        typer.Option("--precision", metavar="FRACTION", min=0, max=1, help="Wanted of each category at IoU 0.50."),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The policy file to write, for `label --policy`.")],
    min_objects: Annotated[
        int, typer.Option("--min-objects", metavar="COUNT", min=1, help="Gold objects a category needs to be judged.")
    ] = 20,
    output: LabelsUri = None,
    settings: Settings = None,
    ray: RayAddress = "auto",
    as_json: AsJson = False,
) -> None:
    """Find score thresholds by category for a wanted precision on gold labels, and write them as a policy.

    A category with fewer gold objects than --min-objects takes policy.score_threshold; one whose detections never are
    so precise takes 1, and nothing of it is accepted. Intervals are Wilson's.
    """
    with labels_folder(output) as folder:
        fields = {"source": images, "output": folder, "model.reference": model, "plan.images_per_shard": 64}
        job = load_job(None, {**fields, **read_settings(settings)})
        _require_writable(to)
        from batchdet.measure import calibrate_model

        with open_progress(sys.stderr) as progress:
            found = calibrate_model(job, gold, precision, min_objects, build_runner(ray, job.cluster), progress)
    to.write_text(policy_text(found, precision), encoding="utf-8")
    if as_json:
        print_json(_document(found, precision))
    else:
        print_table(COLUMNS, [_cells(name, threshold) for name, threshold in found.thresholds.items()])


def policy_text(found: "Calibration", precision: float) -> str:
    """The policy file: the job's policy section, and in comments what its thresholds gave."""
    lines = [
        f"# Precision {precision:g} wanted; {found.model.reference}, {found.model.digest};",
        f"# gold {found.gold.uri}, {found.gold.digest}",
    ]
    for name, threshold in found.thresholds.items():
        _, _, share, interval, recall, accepted, objects, outcome = _cells(name, threshold)
        said = f"precision {share}, {interval} at 95 %, recall {recall}" if share else "nothing accepted"
        lines.append(f"# {name!r}: {outcome}: {said}, {accepted} detections, {objects} gold objects")
    if found.categories.model_only:
        lines.append(f"# not in the gold set, at score_threshold: {', '.join(found.categories.model_only)}")
    text = yaml.safe_dump({"policy": found.policy.model_dump(mode="json")}, sort_keys=False, allow_unicode=True)
    return "\n".join(" ".join(line.splitlines()) for line in lines) + "\n" + text


def _document(found: "Calibration", precision: float) -> dict[str, Any]:
    return {
        "precision": precision,
        "policy": found.policy.model_dump(mode="json"),
        "per_category": {name: asdict(threshold) for name, threshold in found.thresholds.items()},
        "unknown_categories": found.categories.gold_only,
        "unmeasured_categories": found.categories.model_only,
        "model": found.model.reference,
        "model_digest": found.model.digest,
        "gold": found.gold.uri,
        "gold_digest": found.gold.digest,
    }


def _cells(name: str, threshold: "Threshold") -> tuple[object, ...]:
    low, high = threshold.precision_low, threshold.precision_high
    return (
        name,
        threshold.score_threshold,
        "" if threshold.precision is None else f"{threshold.precision:.3f}",
        "" if low is None or high is None else f"{low:.3f}–{high:.3f}",
        f"{threshold.recall:.3f}",
        threshold.num_accepted,
        threshold.num_objects,
        threshold.outcome.replace("_", " "),
    )


def _require_writable(path: Path) -> None:
    """Say before the work that its result could not be kept."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"--to {path}: name a file in a folder that is there")
