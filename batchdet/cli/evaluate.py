"""Door to measuring a model on gold labels. Knows flags and how to show a measure, not how it is taken."""

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchdet.cli.options import AsJson, RayAddress, Settings, read_settings
from batchdet.cli.output import print_json, print_table, print_text
from batchdet.cli.runner import build_runner
from batchdet.config import JobConfig, load_job
from batchdet.progress import open_progress
from batchdet.storage.filesystem import open_store

if TYPE_CHECKING:
    from batchdet.measure import Measurement

Model = Annotated[str, typer.Option(metavar="REF", help="torchvision:NAME[@WEIGHTS], a registry or a file.")]
GoldUri = Annotated[str, typer.Option("--gold", metavar="COCO.json", help="Human labels: boxes, categories by name.")]
ImagesUri = Annotated[
    str, typer.Option("--images", metavar="URI", help="Where the gold images are: a prefix, glob or manifest.")
]
LabelsUri = Annotated[
    str | None,
    typer.Option("--output", metavar="URI", help="Keep the labels here, and go on with them; else a temporary folder."),
]


def evaluate(
    model: Model,
    gold: GoldUri,
    images: ImagesUri,
    output: LabelsUri = None,
    settings: Settings = None,
    ray: RayAddress = "auto",
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR", help="Write a precision-recall plot and tables there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model on gold labels: COCO mAP, by category and by size.

    Every candidate down to model.score_floor counts, 0.001 unless set. A job that asks for reading.decode=fast or for
    another model.precision than fp32 is measured beside one that does not, and the difference is shown.
    """
    with labels_folder(output) as folder:
        job = measuring_job(model, images, folder, settings)
        from batchdet.measure import measure_model

        if to is not None:
            from batchdet.training.curves import require_matplotlib

            require_matplotlib()
        with open_progress(sys.stderr) as progress:
            measured = measure_model(job, gold, build_runner(ray, job.cluster), progress)
        if to is not None:
            _write(measured, to)
    if as_json:
        print_json(as_document(measured) | ({} if output else {"labels": None}))
    else:
        _show(measured)


def measuring_job(model: str, images: str, labels: str, settings: list[str] | None) -> JobConfig:
    """The job that labels gold images.

    Raises:
        ConfigError: a setting is not a field of a job.
    """
    from batchdet.measure import DEFAULTS

    fields = {"source": images, "output": labels, "model.reference": model}
    return load_job(None, {**fields, **DEFAULTS, **read_settings(settings)})


@contextmanager
def labels_folder(output: str | None) -> Iterator[str]:
    """The folder given for labels, or one that goes when it is no longer needed."""
    if output is not None:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="batchdet-evaluate-") as folder:
        yield folder


def as_document(measured: "Measurement") -> dict[str, Any]:
    """The measure as `--json` prints it: fractions, null where undefined."""
    cost = measured.cost
    return {
        **asdict(measured.evaluation.score),
        "model": measured.model.reference,
        "model_digest": measured.model.digest,
        "gold": measured.gold.uri,
        "gold_digest": measured.gold.digest,
        "labels": measured.labels,
        "missing_images": measured.missing_images,
        "failed_images": measured.failed_images,
        "unknown_categories": measured.categories.gold_only,
        "unmeasured_categories": measured.categories.model_only,
        "cost": None
        if cost is None
        else {
            "settings": cost.settings,
            "exact": asdict(cost.exact),
            "map_difference": cost.map_difference,
            "images_with_other_labels": cost.images_with_other_labels,
        },
    }


def cost_line(measured: "Measurement") -> str | None:
    """What the job's inexact settings change, in one line; None without any."""
    cost, score = measured.cost, measured.evaluation.score
    if cost is None:
        return None
    names = ", ".join(f"{field} {value}" for field, value in cost.settings.items())
    return (
        f"{names}: mAP {score.map:.3f} against {cost.exact.map:.3f} exact: {100 * cost.map_difference:+.1f} points; "
        f"{cost.images_with_other_labels} of {score.num_images} images have another list of labels"
    )


def _show(measured: "Measurement") -> None:
    score = measured.evaluation.score
    rows: list[tuple[str, object]] = [
        ("images", score.num_images),
        ("gold objects", score.num_objects),
        ("mAP", _rounded(score.map)),
        ("mAP at IoU 0.50", _rounded(score.map_50)),
        ("mAP at IoU 0.75", _rounded(score.map_75)),
        ("mAP small / medium / large", _joined(score.map_small, score.map_medium, score.map_large)),
        ("recall, 1 / 10 / 100 detections", _joined(score.ar_1, score.ar_10, score.ar_100)),
        ("recall small / medium / large", _joined(score.ar_small, score.ar_medium, score.ar_large)),
    ]
    print_table(("measure", measured.model.reference), rows)
    print_text("\n")
    print_table(("category", "gold objects", "AP", "AP at 0.50"), _category_rows(score.support, score))
    line = cost_line(measured)
    if line is not None:
        print_text(f"\n{line}\n")


def _category_rows(support: Mapping[str, int], score: Any) -> list[tuple[object, ...]]:
    return [
        (name, count, _rounded(score.per_category[name]), _rounded(score.per_category_50[name]))
        for name, count in support.items()
    ]


def _rounded(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _joined(*values: float | None) -> str:
    return " / ".join(_rounded(value) for value in values)


def _write(measured: "Measurement", folder: str) -> None:
    from batchdet.training.curves import draw_precision_recall

    store = open_store(folder, {})
    evaluation = measured.evaluation
    store.write_bytes("precision_recall.png", draw_precision_recall(evaluation.precision, evaluation.score.support))
    store.write_bytes("confusion.csv", measured.confusion.to_csv().encode())
