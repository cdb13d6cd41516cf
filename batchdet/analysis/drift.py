"""How far one distribution of scores lies from another. Knows where no score comes from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchdet.records import IntArray

SCORE_BINS = 1000
"""Equal bins of [0, 1] in which scores are counted; quantiles and distances are as fine as they are."""

QUANTILES = (0.1, 0.5, 0.9)
PSI_PARTS = 10
_PSI_LEAST = 1e-4
"""Share taken for an empty part, so that the index stays finite."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a population, counted.

    Attributes:
        bins: [SCORE_BINS] int64 number of scores in each.
        total: sum of the scores.
    """

    bins: IntArray
    total: float

    @property
    def number(self) -> int:
        """How many there are."""
        return int(self.bins.sum())

    @property
    def mean(self) -> float | None:
        """None without any."""
        return self.total / self.number if self.number else None

    def quantile(self, share: float) -> float | None:
        """Upper edge of the bin that holds it; None without any."""
        if not self.number:
            return None
        place = int(np.searchsorted(np.cumsum(self.bins), share * self.number))
        return min(place + 1, SCORE_BINS) / SCORE_BINS


def bin_of(scores: npt.NDArray[np.float64]) -> IntArray:
    """[N] the bin of each score; 1 falls into the last."""
    return np.clip(np.floor(scores * SCORE_BINS), 0, SCORE_BINS - 1).astype(np.int64)


def describe_drift(before: Scores, after: Scores) -> dict[str, Any]:
    """Counts, means, quantiles and distances as JSON has them; null where a side has no score."""
    both = before.number > 0 and after.number > 0
    return {
        "num_before": before.number,
        "num_after": after.number,
        "mean_before": before.mean,
        "mean_after": after.mean,
        "mean_shift": after.mean - before.mean if before.mean is not None and after.mean is not None else None,
        "quantiles": {f"{share:g}": [before.quantile(share), after.quantile(share)] for share in QUANTILES},
        "ks": ks_distance(before.bins, after.bins) if both else None,
        "psi": stability_index(before.bins, after.bins) if both else None,
    }


def ks_distance(before: IntArray, after: IntArray) -> float:
    """Kolmogorov and Smirnov's distance of two counted populations: the widest gap of their cumulated shares, 0..1."""
    return float(np.abs(np.cumsum(before) / before.sum() - np.cumsum(after) / after.sum()).max())


def stability_index(before: IntArray, after: IntArray) -> float:
    """The population stability index over tenths of the population before: sum of (a - b) ln(a / b) of the shares."""
    cumulated = np.cumsum(before) / before.sum()
    edges = np.searchsorted(cumulated, np.arange(1, PSI_PARTS) / PSI_PARTS)
    # many equal scores may fill several tenths: they are one part then
    starts = np.unique(np.concatenate([[0], np.minimum(edges + 1, SCORE_BINS - 1)]))
    shares = [np.maximum(np.add.reduceat(bins, starts) / bins.sum(), _PSI_LEAST) for bins in (before, after)]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
