"""Distances of distributions against their definitions over the raw scores."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet.analysis.drift import SCORE_BINS, Scores, bin_of, describe_drift, ks_distance, stability_index

SCORES = st.lists(st.integers(0, SCORE_BINS).map(lambda part: part / SCORE_BINS), min_size=1, max_size=60)


def counted(scores: list[float]) -> Scores:
    values = np.array(scores, np.float64)
    return Scores(np.bincount(bin_of(values), minlength=SCORE_BINS), float(values.sum()))


@settings(max_examples=100, deadline=None)
@given(before=SCORES, after=SCORES)
def test_the_distance_is_the_widest_gap_of_the_distributions(before: list[float], after: list[float]) -> None:
    # a score on the edge of a bin belongs to the bin above it, 1 to the last
    low, high = ([min(math.floor(score * SCORE_BINS), SCORE_BINS - 1) for score in side] for side in (before, after))
    gaps = [
        abs(sum(one <= edge for one in low) / len(low) - sum(one <= edge for one in high) / len(high))
        for edge in {*low, *high}
    ]
    assert ks_distance(counted(before).bins, counted(after).bins) == pytest.approx(max(gaps))


@settings(max_examples=100, deadline=None)
@given(before=SCORES, after=SCORES)
def test_the_stability_index_is_never_negative_and_zero_for_equals(before: list[float], after: list[float]) -> None:
    index = stability_index(counted(before).bins, counted(after).bins)
    assert math.isfinite(index)
    assert index >= 0
    assert stability_index(counted(before).bins, counted(before).bins) == 0


def test_the_stability_index_of_known_shares() -> None:
    tenths = [0.05 + 0.1 * part for part in range(10)]
    after = tenths * 9 + tenths[:1] * 10
    shares = [(9 + 10) / 100, *[9 / 100] * 9]
    want = sum((share - 0.1) * math.log(share / 0.1) for share in shares)
    assert stability_index(counted(tenths * 10).bins, counted(after).bins) == pytest.approx(want)


def test_a_description() -> None:
    told = describe_drift(counted([0.5, 0.6, 0.7, 0.8]), counted([0.6, 0.7, 0.8, 0.9]))
    assert (told["num_before"], told["num_after"], told["mean_before"]) == (4, 4, pytest.approx(0.65))
    assert told["mean_shift"] == pytest.approx(0.1)
    assert told["ks"] == 0.25
    assert told["quantiles"]["0.5"] == [pytest.approx(0.6, abs=0.0011), pytest.approx(0.7, abs=0.0011)]
    empty = describe_drift(counted([]), counted([0.5]))
    assert (empty["mean_before"], empty["mean_shift"], empty["ks"], empty["psi"]) == (None, None, None, None)
    assert empty["quantiles"]["0.9"][0] is None
