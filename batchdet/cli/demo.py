"""Door to the demo. Knows what to show of it, not how it is done."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from batchdet.cli.evaluate import as_document
from batchdet.cli.options import AsJson
from batchdet.cli.output import print_json, print_table, print_text
from batchdet.progress import open_progress


def demo(
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where pictures and labels stay.")] = Path(
        "batchdet-demo"
    ),
    retrain: Annotated[
        bool,
        typer.Option(
            "--retrain",
            help="Instead, label a world the model was not made for, train a student on the labels, and measure both.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Label made images in a local S3 server on local Ray, audit it, measure it and show pictures. Needs nothing."""
    if retrain:
        _retrain(folder, as_json)
    else:
        _label(folder, as_json)


def _retrain(folder: Path, as_json: bool) -> None:
    from batchdet.cluster.driver import RayRunner  # ray and torch
    from batchdet.cluster.train import RayPlace
    from batchdet.demo.shifted import run_shifted

    with open_progress(sys.stderr) as progress:
        result = run_shifted(folder, RayPlace("local"), RayRunner("local"), progress)
    student, control = result.student.release.candidate, result.control.release.candidate
    measures = {"teacher": result.student.teacher, "student": student, "gold_only": control}
    if as_json:
        document = {name: None if measured is None else as_document(measured) for name, measured in measures.items()}
        facts = {
            "promoted": result.student.release.promoted,
            "reasons": result.student.release.reasons,
            "reference": result.student.release.reference,
            "dir": str(folder),
            "num_gold": result.student.num_gold,
            "num_pseudo": result.student.num_pseudo,
        }
        print_json(document | facts)
        return
    learned = {
        "teacher": "other scenes",
        "student": f"{result.student.num_gold} gold and {result.student.num_pseudo} pseudo-labelled images",
        "gold_only": f"{result.control.num_gold} gold images",
    }
    rows = [
        (name, learned[name], f"{measured.evaluation.score.map:.3f}", f"{measured.evaluation.score.map_50:.3f}")
        for name, measured in measures.items()
        if measured is not None
    ]
    print_table(("model", "learned from", "mAP on unseen scenes", "at IoU 0.50"), rows)
    print_text(f"\n{result.student.release.reference}: promoted: {result.student.release.promoted}\n")


def _label(folder: Path, as_json: bool) -> None:
    from batchdet.cluster.driver import RayRunner  # ray and torch
    from batchdet.demo.demo import run_demo

    with open_progress(sys.stderr) as progress:
        result = run_demo(folder, RayRunner("local"), progress)
    run, score = result.run, result.score
    if as_json:
        print_json(
            {
                "dir": str(result.folder),
                "run": run,
                "audit_passed": result.receipt.passed,
                "map": score.map,
                "map_50": score.map_50,
                "per_category": score.per_category,
                "sheet": str(result.sheet),
            }
        )
        return
    rows: list[tuple[str, object]] = [
        ("listed", run.num_listed),
        ("labelled", f"{run.num_labelled}, {run.num_empty} of them without an object"),
        ("failed", f"{run.num_failed}, broken on purpose"),
        ("images per second", round(run.images_per_second, 1)),
        ("audit", "every image in exactly one state"),
        ("mAP against the drawn truth", f"{score.map:.3f}, at IoU 0.5: {score.map_50:.3f}"),
        ("pictures", result.sheet),
        ("Parquet", result.folder / "labels"),
    ]
    print_table(("demo", run.run_id), rows)
    print_text(f'\nbatchdet query {result.folder / "labels"} "{" ".join(result.question.split())}"\n\n')
    print_table(tuple(result.answer[0]), [tuple(row.values()) for row in result.answer])
