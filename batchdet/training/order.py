"""Which images a step takes: a pure function of seed and step. Knows no images, no workers' number and no clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from batchdet.errors import ConfigError, SourceError
from batchdet.training.config import LengthConfig
from batchdet.training.seeds import derive_seed

_GOLD, _PSEUDO, _DRAW = 1, 2, 3
_CACHED_PASSES = 4

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Draw:
    """One place of a batch.

    Attributes:
        is_gold: from the gold images, else from the pseudo-labelled ones.
        index: which of them, from 0.
        seed: of all that is random about this image in this step.
    """

    is_gold: bool
    index: int
    seed: int


@dataclass(frozen=True, slots=True)
class BatchOrder:
    """The global batches of a training.

    Gold and pseudo-labelled images run through shuffled passes of their own, so that every image comes once before
    any comes twice, and passes flow on across batches: nothing is dropped.

    Attributes:
        num_gold, num_pseudo: images of each kind.
        gold_per_batch: places of every batch that gold fills.
        batch_images: over all workers.
    """

    num_gold: int
    num_pseudo: int
    gold_per_batch: int
    batch_images: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every pseudo-labelled image (every gold one, where there are no others) came once."""
        images, places = self.num_pseudo, self.batch_images - self.gold_per_batch
        if not images:
            images, places = self.num_gold, self.gold_per_batch
        return -(-images // places)

    def batch(self, step: int) -> tuple[Draw, ...]:
        """The global batch of a step, counted from 0: gold first."""
        pseudo_per_batch = self.batch_images - self.gold_per_batch
        gold = _taken(self.seed, _GOLD, self.num_gold, step * self.gold_per_batch, self.gold_per_batch)
        pseudo = _taken(self.seed, _PSEUDO, self.num_pseudo, step * pseudo_per_batch, pseudo_per_batch)
        indices = [(True, index) for index in gold] + [(False, index) for index in pseudo]
        return tuple(
            Draw(is_gold, index, derive_seed(self.seed, _DRAW, step, place))
            for place, (is_gold, index) in enumerate(indices)
        )

    def num_steps(self, length: LengthConfig) -> int:
        """Steps of the whole training."""
        return length.steps or (length.epochs or 0) * self.steps_per_epoch


def plan_order(num_gold: int, num_pseudo: int, gold_share: float, length: LengthConfig) -> BatchOrder:
    """The order of a training.

    Args:
        num_gold: images with human labels; may be 0.
        num_pseudo: pseudo-labelled images; may be 0.
        gold_share: of every batch, rounded to whole images, at least one where there is gold.
        length: holds batch size and seed.

    Raises:
        SourceError: there is no image at all.
        ConfigError: the batch has no place for one of the kinds.
    """
    if not num_gold and not num_pseudo:
        raise SourceError("no image to learn from: neither gold nor a pseudo-labelled one")
    gold_per_batch = max(1, round(gold_share * length.batch_images)) if num_gold else 0
    if not num_pseudo:
        gold_per_batch = length.batch_images
    elif gold_per_batch >= length.batch_images:
        raise ConfigError(
            f"gold.share {gold_share} of length.batch_images {length.batch_images} leaves no place for pseudo-labels"
        )
    return BatchOrder(num_gold, num_pseudo, gold_per_batch, length.batch_images, length.seed)


def portion(batch: Sequence[Item], rank: int, num_workers: int) -> Sequence[Item]:
    """A worker's part of a global batch; both kinds spread evenly.

    Raises:
        ConfigError: some worker would have none.
    """
    if len(batch) < num_workers:
        raise ConfigError(f"length.batch_images {len(batch)}: fewer than the {num_workers} workers")
    return batch[rank::num_workers]


def _taken(seed: int, kind: int, size: int, start: int, count: int) -> list[int]:
    """`count` places from `start` on of an endless run of shuffled passes over `size` images."""
    return [int(_pass(seed, kind, size, place // size)[place % size]) for place in range(start, start + count)]


@lru_cache(_CACHED_PASSES)
def _pass(seed: int, kind: int, size: int, number: int) -> npt.NDArray[np.int64]:
    shuffled: npt.NDArray[np.int64] = np.random.default_rng((seed, kind, number)).permutation(size)
    return shuffled
