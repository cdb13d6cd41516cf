"""The whole job on made images: draw, store, label, audit, ask, measure, show. Knows no Ray: the runner is given.

DIR/images/        the scenes as they lie in the bucket, some broken on purpose
DIR/labels/        what was committed, copied out of the bucket
DIR/sheet.jpg      pictures with their accepted boxes
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchdet.analysis.audit import audit_run
from batchdet.analysis.query import ask
from batchdet.analysis.receipt import Receipt
from batchdet.config import JobConfig, load_job
from batchdet.demo.broken import draw_broken
from batchdet.demo.scenes import Scene, draw_scenes
from batchdet.demo.server import serve_bucket
from batchdet.demo.sheet import SheetPicture, draw_sheet, write_sheet
from batchdet.demo.shipped import shipped_model
from batchdet.demo.truth import ImageFindings, ImageTruth, TruthScore, score_against_truth
from batchdet.engine.decode import decode
from batchdet.errors import OutputError
from batchdet.progress import Progress
from batchdet.records import RunRow
from batchdet.run import Runner, label_bucket
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.layout import is_kept
from batchdet.storage.ledger import Ledger

SEED = 2026
NUM_SCENES = 240
IMAGES_PER_SHARD = 41
NUM_SHOWN = 24
BUCKET_SOURCE = "s3://photos/scenes"
BUCKET_OUTPUT = "s3://labels/scenes"
QUESTION = """
    SELECT category, count(*) AS detections, count(DISTINCT image_uri) AS images, round(avg(score), 3) AS mean_score
    FROM current_detections GROUP BY category ORDER BY detections DESC"""
FOUND = "SELECT image_uri, label, score, xmin, ymin, xmax, ymax, accepted FROM current_candidates"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo did and measured.

    Attributes:
        score: COCO mAP of all stored candidates against the drawn truth.
        answer: rows of `question`, asked of the copied output.
    """

    folder: Path
    run: RunRow
    receipt: Receipt
    score: TruthScore
    question: str
    answer: tuple[Mapping[str, Any], ...]
    sheet: Path


def run_demo(folder: Path, runner: Runner, progress: Progress) -> DemoResult:
    """Run the main job on drawn scenes in a local S3 server, and check it against what was drawn.

    Args:
        folder: made if it is not there. What an earlier demo left in it makes room; other files stay.
        progress: told what happens.
        runner: where to label; must be started inside, so that it sees the server's address in the environment.

    Raises:
        UserError: the folder cannot be written, holds labels that are not the demo's, or moto is not installed.
        AuditError: the receipt does not add up.
    """
    require_own_labels(folder)
    progress.log(f"drawing {NUM_SCENES} scenes")
    scenes = list(draw_scenes(SEED, NUM_SCENES))
    pictures = {scene.name: scene.data for scene in scenes} | {file.name: file.data for file in draw_broken(SEED)}
    _write_files(folder / "images", pictures)
    with serve_bucket() as server, _environment(server.environment):
        progress.log(f"an S3 server listens at {server.endpoint_url}; uploading to {BUCKET_SOURCE}")
        _upload(pictures)
        run = label_bucket(_job(), runner, progress)
        output = open_store(BUCKET_OUTPUT, {})
        receipt = audit_run(output, run.run_id)
        receipt.require_passed()
        clear_labels(folder)
        _write_files(folder / "labels", _download(output))
    labels = open_store(str(folder / "labels"), {})
    with ask(labels, QUESTION) as answer:
        counted = tuple(answer.records())
    with ask(labels, FOUND) as answer:
        found = list(answer.records())
    sheet = folder / "sheet.jpg"
    write_sheet(draw_sheet(_shown(scenes, found), run.categories), sheet)
    return DemoResult(folder, run, receipt, _score(scenes, found, run.categories), QUESTION, counted, sheet)


def _job() -> JobConfig:
    return load_job(
        None,
        {
            "source": BUCKET_SOURCE,
            "output": BUCKET_OUTPUT,
            "model.reference": str(shipped_model()),
            "plan.images_per_shard": IMAGES_PER_SHARD,
        },
    )


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The process's environment with these variables; workers started inside inherit them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _upload(pictures: Mapping[str, bytes]) -> None:
    source = open_store(BUCKET_SOURCE, {})
    for uri in (BUCKET_SOURCE, BUCKET_OUTPUT):
        source.fs.mkdir(uri.split("/")[2])
    _each(pictures, lambda name: source.write_bytes(name, pictures[name]))


def _download(output: Store) -> dict[str, bytes]:
    names = [name.removeprefix(f"{output.root}/") for name in output.fs.find(output.root)]
    return dict(zip(names, _each(names, output.read_bytes), strict=True))


def _each(names: Any, work: Callable[[str], Any]) -> list[Any]:
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(work, names))


def require_own_labels(folder: Path) -> None:
    """Refuse a folder whose labels are of another job: the demo would put its own in their place.

    Raises:
        OutputError: names the folder and whose labels it holds.
    """
    labels = Ledger(open_store(str(folder / "labels"), {}))
    sources = {row.source for row in labels.run_rows()} | {plan.header.source for plan in labels.open_runs()}
    for source in sorted(sources - {BUCKET_SOURCE}):
        raise OutputError(f"--dir {folder}: its labels are of {source}, not of a demo; name another folder")


def clear_labels(folder: Path) -> None:
    """Remove the files of an earlier demo's output, and the folders they leave empty; nothing else."""
    labels = folder / "labels"
    found = [*labels.rglob("*"), labels] if labels.is_dir() else []
    # what lies deeper first
    for path in sorted(found, key=lambda path: len(path.parts), reverse=True):
        if path.is_file() and is_kept(path.relative_to(labels).as_posix()):
            path.unlink()
        elif path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    store = open_store(str(folder), {})
    for name, data in files.items():
        store.write_bytes(name, data)


def _findings(rows: Sequence[Mapping[str, Any]]) -> ImageFindings:
    return ImageFindings(
        boxes=np.array([[row[side] for side in ("xmin", "ymin", "xmax", "ymax")] for row in rows], np.float32),
        scores=np.array([row["score"] for row in rows], np.float32),
        labels=np.array([row["label"] for row in rows], np.int64),
    )


def _by_name(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in found:
        rows.setdefault(row["image_uri"].rpartition("/")[2], []).append(row)
    return rows


def _score(scenes: list[Scene], found: Sequence[Mapping[str, Any]], categories: tuple[str, ...]) -> TruthScore:
    truth = {scene.name: ImageTruth(scene.boxes, scene.labels) for scene in scenes}
    return score_against_truth(truth, {name: _findings(rows) for name, rows in _by_name(found).items()}, categories)


def _shown(scenes: list[Scene], found: Sequence[Mapping[str, Any]]) -> list[SheetPicture]:
    rows = _by_name([row for row in found if row["accepted"]])
    shown = [scene for scene in scenes if scene.name in rows][:NUM_SHOWN]
    return [_picture(scene, _findings(rows[scene.name])) for scene in shown]


def _picture(scene: Scene, found: ImageFindings) -> SheetPicture:
    pixels = decode(scene.data, max_pixels=scene.width * scene.height).pixels
    return SheetPicture(pixels, found.boxes, found.scores, found.labels)
