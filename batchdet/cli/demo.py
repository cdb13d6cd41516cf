"""Door to the demo. Knows what to show of it, not how it is done."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from batchdet.cli.options import AsJson
from batchdet.cli.output import print_json, print_table, print_text
from batchdet.progress import open_progress


def demo(
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where pictures and labels stay.")] = Path(
        "batchdet-demo"
    ),
    as_json: AsJson = False,
) -> None:
    """Label made images in a local S3 server on local Ray, audit it, measure it and show pictures. Needs nothing."""
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
