"""The gate on hand-made measures, and its law: what only rises passes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchdet.training.evaluation import Score
from batchdet.training.gate import Tolerances, judge

NAMES = ("cat", "dog", "emu")


def score(support: dict[str, int] | None = None, **per_category: float) -> Score:
    counts = support or dict.fromkeys(per_category, 100)
    values: dict[str, Any] = dict.fromkeys(Score.__slots__, 0.5)
    return Score(
        **values
        | {
            "map": sum(per_category.values()) / len(per_category),
            "per_category": per_category,
            "per_category_50": per_category,
            "support": counts,
        }
    )


LIVE = score(cat=0.6, dog=0.4)


@pytest.mark.parametrize(
    ("candidate", "tolerances", "reasons"),
    [
        pytest.param(LIVE, Tolerances(), [], id="the same"),
        pytest.param(score(cat=0.61, dog=0.41), Tolerances(), [], id="better"),
        pytest.param(score(cat=0.7, dog=0.39), Tolerances(), [], id="a category falls within tolerance"),
        pytest.param(
            score(cat=0.9, dog=0.37),
            Tolerances(),
            ["dog (100 objects) falls from 0.400 to 0.370; 0.02 is tolerated"],
            id="a category falls, all together rise",
        ),
        pytest.param(
            score(cat=0.59, dog=0.4),
            Tolerances(),
            ["mAP falls from 0.500 to 0.495; 0 is tolerated"],
            id="all together fall",
        ),
        pytest.param(score(cat=0.59, dog=0.4), Tolerances(overall=0.01), [], id="all together within tolerance"),
        pytest.param(score(cat=0.6, dog=0.4, emu=0.1), Tolerances(), [], id="a new category counts for nothing"),
        pytest.param(
            score(cat=0.9),
            Tolerances(),
            [
                "mAP falls from 0.500 to 0.450; 0 is tolerated",
                "dog (100 objects) falls from 0.400 to 0.000; 0.02 is tolerated",
            ],
            id="a category forgotten",
        ),
    ],
)
def test_what_falls_is_a_reason(candidate: Score, tolerances: Tolerances, reasons: list[str]) -> None:
    verdict = judge(candidate, LIVE, tolerances)
    assert list(verdict.reasons) == reasons
    assert verdict.passed == (not reasons)


def test_a_category_with_few_objects_is_not_judged_by_itself() -> None:
    live = score({"cat": 100, "dog": 19}, cat=0.6, dog=0.4)
    assert judge(score(cat=0.9, dog=0.2), live, Tolerances()).passed
    assert not judge(score(cat=0.9, dog=0.2), live, Tolerances(min_objects=19)).passed


FRACTIONS = st.floats(0, 1)


@given(before=st.lists(FRACTIONS, min_size=3, max_size=3), rises=st.lists(FRACTIONS, min_size=3, max_size=3))
def test_a_model_that_is_nowhere_worse_passes(before: list[float], rises: list[float]) -> None:
    after = [min(1.0, value + rise) for value, rise in zip(before, rises, strict=True)]
    live, candidate = (score(**dict(zip(NAMES, values, strict=True))) for values in (before, after))
    assert judge(candidate, live, Tolerances(0.0, 0.0, 1)).passed


@given(before=FRACTIONS, after=FRACTIONS, tolerance=st.sampled_from([0.0, 0.1]))
def test_one_category_decides_alone(before: float, after: float, tolerance: float) -> None:
    verdict = judge(score(cat=after), score(cat=before), Tolerances(tolerance, tolerance, 1))
    assert verdict.passed == (after >= before - tolerance)
