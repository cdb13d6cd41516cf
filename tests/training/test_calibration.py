"""Thresholds against a search through every score; Wilson's interval against its definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchdet.training.calibration import Wanted, calibrate_thresholds, wilson_interval
from batchdet.training.evaluation import Ranking

FLOOR = 0.05


def ranking(judged: list[tuple[float, bool]], num_objects: int) -> Ranking:
    ordered = sorted(judged, key=lambda pair: -pair[0])
    scores = np.array([score for score, _ in ordered], np.float32).astype(np.float64)
    return Ranking(scores, np.array([is_true for _, is_true in ordered], np.bool_), num_objects)


def precision_at(judged: Ranking, threshold: float) -> float:
    accepted = judged.scores >= np.float32(threshold)
    return float(judged.is_true[accepted].mean()) if accepted.any() else -1.0


SCORES = st.floats(0.0625, 1.0, width=32)
JUDGED = st.lists(st.tuples(st.one_of(SCORES, st.sampled_from([0.25, 0.5, 0.75])), st.booleans()), max_size=30)


@given(judged=JUDGED, wanted=st.sampled_from([0.3, 0.5, 0.9, 1.0]))
def test_no_lower_threshold_is_as_precise(judged: list[tuple[float, bool]], wanted: float) -> None:
    one = ranking(judged, num_objects=30)
    found = calibrate_thresholds({"cat": one}, Wanted(wanted, 0.5, 20, FLOOR))["cat"]
    enough = [score for score in one.scores if precision_at(one, score) >= wanted]
    if not enough:
        assert (found.outcome, found.score_threshold) == ("out_of_reach", 1.0)
        return
    assert found.outcome == "calibrated"
    assert FLOOR <= found.score_threshold <= min(enough)
    accepted = one.scores >= np.float32(found.score_threshold)
    assert accepted.tolist() == (one.scores >= min(enough)).tolist(), "a short number accepts just the same"
    assert found.precision == pytest.approx(precision_at(one, min(enough)))
    assert found.precision is not None
    assert found.precision >= wanted
    assert (found.num_accepted, found.recall) == (accepted.sum(), one.is_true[accepted].sum() / 30)


def test_few_objects_take_the_default_and_say_so() -> None:
    one = ranking([(0.9, True), (0.7, True), (0.4, False)], num_objects=19)
    found = calibrate_thresholds({"cat": one}, Wanted(0.9, 0.6, 20, FLOOR))["cat"]
    assert (found.outcome, found.score_threshold, found.num_accepted) == ("too_few_objects", 0.6, 2)
    assert calibrate_thresholds({"cat": one}, Wanted(0.9, 0.6, 19, FLOOR))["cat"].outcome == "calibrated"


def test_nothing_found_is_out_of_reach() -> None:
    found = calibrate_thresholds({"cat": ranking([], 50)}, Wanted(0.9, 0.5, 20, FLOOR))["cat"]
    assert (found.outcome, found.precision, found.precision_low, found.recall) == ("out_of_reach", None, None, 0.0)


def test_a_threshold_is_short_where_it_can_be() -> None:
    one = ranking([(0.9, True), (0.6123456, True), (0.61, False), (0.6, False)], num_objects=30)
    assert calibrate_thresholds({"cat": one}, Wanted(1.0, 0.5, 20, FLOOR))["cat"].score_threshold == 0.612


@given(num_all=st.integers(1, 10_000), data=st.data())
def test_wilson_bounds_are_shares_just_not_refuted(num_all: int, data: st.DataObject) -> None:
    """At a bound the observed share is 1.96 standard errors of the bound away, by definition."""
    num_true = data.draw(st.integers(0, num_all))
    low, high = wilson_interval(num_true, num_all)
    share = num_true / num_all
    assert 0 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1
    for bound in (low, high):
        if 1e-9 < bound < 1 - 1e-9:
            error = math.sqrt(bound * (1 - bound) / num_all)
            assert abs(share - bound) == pytest.approx(1.959964 * error, rel=1e-4, abs=1e-9)


def test_wilson_of_a_textbook() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
