import re

import pytest

from batchdet.errors import DriftError
from batchdet.training.config import GuardConfig
from batchdet.training.guard import compare_with_gold, guard
from batchdet.training.pseudo_labels import BoxCounts

GOLD = BoxCounts(100, {"cat": 200, "dog": 100, "newt": 5})


def counts(images: int = 1000, **boxes: int) -> BoxCounts:
    return BoxCounts(images, {"cat": 2000, "dog": 1000, "newt": 50} | boxes)


@pytest.mark.parametrize(
    ("pseudo", "outside"),
    [
        (counts(), []),
        (counts(cat=1000), []),
        (counts(cat=999), ["cat"]),
        (counts(cat=4000), []),
        (counts(cat=4001), ["cat"]),
        (counts(dog=0), ["dog"]),
        (counts(newt=0), []),  # too few gold boxes to judge
        (counts(500, cat=4000, dog=2000), [None, "cat", "dog"]),
        (counts(unasked=10**6), []),
    ],
)
def test_boxes_per_image_are_compared_by_category(pseudo: BoxCounts, outside: list[str | None]) -> None:
    drifts = compare_with_gold(pseudo, GOLD, GuardConfig())
    assert [drift.category for drift in drifts] == [None, "cat", "dog"]
    assert [drift.category for drift in drifts if drift.is_outside] == outside


def test_the_guard_refuses_warns_or_is_off() -> None:
    low = counts(cat=100, dog=1900)
    with pytest.raises(DriftError, match=re.escape("cat: 0.1 pseudo-boxes per image, gold has 2; the ratio")) as caught:
        guard(low, GOLD, GuardConfig())
    assert caught.value.exit_code == 3
    assert [str(drift) for drift in guard(low, GOLD, GuardConfig(action="warn"))][-1].startswith("cat: 0.1 pseudo")
    assert guard(low, GOLD, GuardConfig(action="off")) == []
    assert guard(counts(), GOLD, GuardConfig()) == []


def test_without_enough_gold_nothing_is_judged() -> None:
    assert guard(counts(), BoxCounts(2, {"cat": 3}), GuardConfig()) == []
