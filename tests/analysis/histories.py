"""Random histories of nights: drawn, played through the real writers, and foretold by a dictionary.

The oracle knows no SQL and reads no file: it goes through the nights and keeps the last word on each image.
"""

import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from hypothesis import strategies as st

from batchdet.records import ImageRef, LabelledImage
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.plan import RunPlan
from tests.analysis.outputs import CATEGORIES, MODEL, NEXT_MODEL, Image, close, commit, delete, open_run, run_id

AGED = ("decoder",)
"""Columns that the images files of an aged run lack: they stand for columns that were added after it."""

QUESTIONS = {
    "images": "SELECT image_uri, run_id, etag, status, failure_code, num_detections, num_candidates, width, decoder "
    "FROM current_images",
    "candidates": "SELECT image_uri, run_id, detection_index, category, score, xmax, accepted FROM current_candidates",
    "detections": "SELECT image_uri, run_id, detection_index, category, score, xmax, accepted FROM current_detections",
    "failures": "SELECT image_uri, run_id, failure_code FROM failures",
    "runs": "SELECT run_id, status, num_listed FROM runs",
}
"""One statement for every engine by what it asks."""

Answers = dict[str, list[tuple[Any, ...]]]
"""Sorted rows by question."""


@dataclass(frozen=True)
class Night:
    """One run of a history.

    Attributes:
        listed: etag and what is to be said of it, by the image's name.
        ending: complete, partial or open; the last two commit half their shards and leave a torn one.
        deletes: known images that are not listed get a row that says so.
        is_new_model: everything listed is labelled again.
        is_retried: every shard is committed twice.
        is_aged: its images files lack the columns of `AGED`.
    """

    listed: Mapping[str, tuple[str, Image]]
    ending: str
    deletes: bool
    is_new_model: bool
    is_retried: bool
    is_aged: bool


NAMES = ("a.jpg", "b c.jpg", "d#e%.jpg", "é.jpg", "it's.jpg")
IMAGES = st.builds(Image, st.integers(0, 2), st.integers(0, 2), st.none() | st.sampled_from(["truncated", "corrupt"]))
NIGHTS = st.builds(
    Night,
    listed=st.dictionaries(st.sampled_from(NAMES), st.tuples(st.sampled_from("12"), IMAGES), max_size=5),
    ending=st.sampled_from(["complete", "complete", "complete", "partial", "open"]),
    deletes=st.booleans(),
    is_new_model=st.sampled_from([False, False, True]),
    is_retried=st.booleans(),
    is_aged=st.booleans(),
)
HISTORIES = st.lists(NIGHTS, min_size=1, max_size=4)


@dataclass(frozen=True)
class Word:
    """The last complete run's word on an image."""

    night: int
    etag: str
    image: Image


class History:
    """Nights of one folder of images.

    Args:
        nights: in order.
        folder: its images' and its runs' own; histories of different folders can lie in one output.
    """

    def __init__(self, nights: Sequence[Night], folder: int = 0) -> None:
        self.nights = nights
        self._folder = folder

    def uri(self, name: str) -> str:
        return f"s3://b/{self._folder}/{name}"

    def run_id(self, night: int) -> str:
        return run_id(self._folder * 10 + night)

    def play(self, output: Store) -> None:
        """Write the nights' files."""
        before: dict[str, Word] = {}
        for number, night in enumerate(self.nights):
            gone = {self.uri(name) for name in before.keys() - night.listed.keys()}
            self._play_night(output, number, night, gone)
            before = self.current(number + 1)
        for number, night in enumerate(self.nights):
            if night.is_aged:
                age(output, self.run_id(number))

    def _play_night(self, output: Store, number: int, night: Night, gone: set[str]) -> None:
        images = {self.uri(name): image for name, (_, image) in night.listed.items()}
        etags = {self.uri(name): etag for name, (etag, _) in night.listed.items()}
        model = NEXT_MODEL if night.is_new_model else MODEL
        plan = open_run(output, self._folder * 10 + number, etags, model=model)
        shards = range(plan.num_shards if night.ending == "complete" else plan.num_shards // 2)
        for _ in range(2 if night.is_retried else 1):
            commit(output, plan, images, shards)
        if night.deletes and gone:
            delete(output, plan, gone)
        if night.ending != "complete":
            tear(output, plan, images, len(shards))
        if night.ending != "open":
            close(output, plan, night.ending)

    def current(self, nights: int | None = None) -> dict[str, Word]:
        """The last word on each image after so many nights, by its name."""
        words: dict[str, Word] = {}
        for number, night in enumerate(self.nights[:nights]):
            if night.ending != "complete":
                continue
            if night.deletes:
                words = {name: word for name, word in words.items() if name in night.listed}
            for name, (etag, image) in night.listed.items():
                word = words.get(name)
                if word is None or word.etag != etag or word.image.failure or night.is_new_model:
                    words[name] = Word(number, etag, image)
        return words

    def answers(self) -> Answers:
        """What the views are to say."""
        found: Answers = {question: [] for question in QUESTIONS}
        for name, word in self.current().items():
            self._say(found, name, word)
        for number, night in enumerate(self.nights):
            if night.ending != "open":
                found["runs"].append((self.run_id(number), night.ending, len(night.listed)))
        return {question: arranged(rows) for question, rows in found.items()}

    def _say(self, found: Answers, name: str, word: Word) -> None:
        uri, run, image = self.uri(name), self.run_id(word.night), word.image
        if image.failure is not None:
            found["images"].append((uri, run, word.etag, "failed", image.failure, None, None, None, None))
            found["failures"].append((uri, run, image.failure))
            return
        decoder = None if self.nights[word.night].is_aged else "none"
        counts = (image.accepted, image.accepted + image.rejected)
        found["images"].append((uri, run, word.etag, "labelled", None, *counts, 100, decoder))
        outcome = image.outcome(ImageRef(uri))
        assert isinstance(outcome, LabelledImage)
        for index, score in enumerate(outcome.scores.tolist()):
            is_accepted = index < image.accepted
            row = (uri, run, index, CATEGORIES[index % 3 + 1], score, 30.0, is_accepted)
            found["candidates"].append(row)
            if is_accepted:
                found["detections"].append(row)


def tear(output: Store, plan: RunPlan, images: Mapping[str, Image], shard_id: int) -> None:
    """What a crash leaves of a shard: its detections without the commit marker, and a file half written."""
    if shard_id >= plan.num_shards:
        return
    commit(output, plan, images, [shard_id])
    marker = f"images/run_id={plan.run_id}/shard-{shard_id:05d}.parquet"
    torn = output.read_bytes(marker)[:-7]
    output.delete(marker)
    output.write_bytes(f"images/run_id={plan.run_id}/.{0:032x}.tmp", torn)


def age(output: Store, run_id: str) -> None:
    """Rewrite a run's images files as a batchdet wrote them that did not know the columns of `AGED`."""
    for path in Path(output.path("images")).glob(f"run_id={run_id}/*.parquet"):
        rows = pq.ParquetFile(io.BytesIO(path.read_bytes())).read()
        pq.write_table(rows.drop_columns(list(AGED)), path, compression="zstd")


def play_into_one(histories: Iterable[History], root: Path) -> Store:
    """One output that holds the runs of all these histories; each was played in an output of its own."""
    whole = root / "whole"
    for number, history in enumerate(histories):
        part = root / str(number)
        history.play(open_store(str(part), {}))
        for table in ("runs", "images", "detections"):
            if (part / table).exists():
                shutil.copytree(part / table, whole / table, dirs_exist_ok=True)
    return open_store(str(whole), {})


def answers_of(histories: Iterable[History]) -> Answers:
    """What the views of `play_into_one` are to say."""
    parts = [history.answers() for history in histories]
    return {question: arranged(row for part in parts for row in part[question]) for question in QUESTIONS}


def arranged(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The rows in an order of their own; no two rows of a view share their first three values."""
    return sorted(rows, key=lambda row: tuple(map(str, row)))
