"""A student examined between two steps: each worker finds its share, all together are judged. Knows no Ray.

What decides over a promotion is `measure`'s, taken at the end by the engine that labels; this is what a person watches.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from batchdet.config import EXTENSIONS
from batchdet.engine.decode import decode
from batchdet.engine.detections import Detections
from batchdet.errors import DecodeError, SourceError
from batchdet.records import FailedImage, ImageRef
from batchdet.storage.filesystem import open_store
from batchdet.storage.listing import list_images
from batchdet.storage.reader import BlockReader
from batchdet.training.evaluation import Found, evaluate_detections, restrict
from batchdet.training.finding import Finder
from batchdet.training.gold import find_images, read_gold, share_categories
from batchdet.training.job import RetrainConfig
from batchdet.training.loop import Trainer
from batchdet.training.terms import everyone

SCORE_FLOOR = 0.001
"""Every candidate counts for average precision."""

Part = tuple[int, Detections]
"""Position of an image in the gold set, and what was found in it."""


class Examiner:
    """mAP on the held-out images, as often as the job says.

    Args:
        job: its held-out gold.
        categories: of the student, in label order.
        rank, workers: of the process group; every worker must examine at the same steps.

    Raises:
        UserError: the gold set or its images cannot be read.
    """

    def __init__(self, job: RetrainConfig, categories: Sequence[str], rank: int, workers: int) -> None:
        options = job.storage.source
        self._images = job.held_out.images
        self._every = job.held_out.every_steps
        self._batch = job.length.batch_images
        self._max_pixels = job.pictures.max_pixels
        self._gold = read_gold(job.held_out.annotations, options)
        self._shared = share_categories(self._gold, categories)
        places = {name: place for place, name in enumerate(self._gold.categories)}
        self._labels = np.array([places.get(name, -1) for name in categories], np.int64)
        listing = list_images(job.held_out.images, options, EXTENSIONS, lambda _: None)
        uris = find_images(self._gold, listing, open_store(job.held_out.images, options).uri).uris
        known = [(place, uri) for place, uri in enumerate(uris) if uri is not None]
        self._mine = known[rank::workers]
        self._reader = BlockReader(options)

    def is_due(self, trainer: Trainer) -> bool:
        """Whether to examine now."""
        return self._every is not None and (trainer.step % self._every == 0 or trainer.step == trainer.num_steps)

    def examine(self, trainer: Trainer) -> float:
        """MAP of the student as it would be kept now; the same on every worker.

        Raises:
            SourceError: not one image could be read.
        """
        trainer.model.eval()
        finder = Finder(trainer.model, trainer.architecture)
        with finder.floor(SCORE_FLOOR):
            starts = range(0, len(self._mine), self._batch)
            own = [part for start in starts for part in self._find(finder, trainer, self._mine[start:][: self._batch])]
        together = sorted((part for some in everyone(own) for part in some), key=lambda part: part[0])
        if not together:
            raise SourceError(f"held_out.images {self._images}: not one of the gold images there could be read")
        return self._judge(together)

    def _find(self, finder: Finder, trainer: Trainer, some: Sequence[tuple[int, str]]) -> Iterator[Part]:
        """What is found in each image that can be read."""
        reads = self._reader.fetch([ImageRef(uri) for _, uri in some])
        pictures: dict[int, Tensor] = {}
        for (place, _), read in zip(some, reads, strict=True):
            if isinstance(read, FailedImage):
                continue
            try:
                pixels = decode(read.data, self._max_pixels).pixels
            except DecodeError:
                continue
            pictures[place] = from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
        if pictures:
            found = finder.find(list(pictures.values()), trainer.device)
            for number, place in enumerate(pictures):
                yield place, found.select(found.image_index == number)

    def _judge(self, parts: Sequence[Part]) -> float:
        labelled = np.zeros(len(self._gold.names), np.bool_)
        labelled[[place for place, _ in parts]] = True
        counts = [len(found) for _, found in parts]
        found = Found(
            images=np.repeat(np.array([place for place, _ in parts], np.int64), counts),
            labels=self._labels[_joined([found.labels for _, found in parts])],
            boxes=_joined([found.boxes for _, found in parts]),
            scores=_joined([found.scores for _, found in parts]),
            accepted=np.ones(sum(counts), np.bool_),
        )
        found = found.select(found.labels >= 0)
        return evaluate_detections(*restrict(self._gold, found, labelled, self._shared.names)).score.map


def _joined(columns: Sequence[Tensor]) -> Any:
    return np.concatenate([column.numpy() for column in columns])
