import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchdet.errors import ConfigError, SourceError
from batchdet.training.config import LengthConfig
from batchdet.training.order import BatchOrder, plan_order, portion

SIZES = st.integers(1, 40)


def order(num_gold: int = 5, num_pseudo: int = 23, share: float = 0.25, batch: int = 8, seed: int = 0) -> BatchOrder:
    return plan_order(num_gold, num_pseudo, share, LengthConfig(steps=1, batch_images=batch, seed=seed))


@given(SIZES, SIZES, st.integers(2, 16), st.floats(0.01, 0.6))
def test_every_image_comes_once_before_any_comes_twice(gold: int, pseudo: int, batch: int, share: float) -> None:
    planned = order(gold, pseudo, share, batch)
    draws = [draw for step in range(30) for draw in planned.batch(step)]
    for is_gold, size in ((True, gold), (False, pseudo)):
        indices = [draw.index for draw in draws if draw.is_gold == is_gold]
        passes = [indices[start : start + size] for start in range(0, len(indices), size)]
        assert all(sorted(whole) == list(range(size)) for whole in passes if len(whole) == size)
        assert max(Counter(passes[-1]).values()) == 1


@given(st.integers(1, 8), st.integers(0, 50))
def test_the_workers_parts_are_the_global_batch(workers: int, step: int) -> None:
    planned = order()
    parts = [portion(planned.batch(step), rank, workers) for rank in range(workers)]
    assert sorted(draw.seed for part in parts for draw in part) == sorted(draw.seed for draw in planned.batch(step))


@pytest.mark.parametrize(("share", "expected"), [(0.25, 2), (0.5, 4), (0.01, 1)])
def test_gold_has_its_share_of_every_batch(share: float, expected: int) -> None:
    assert {sum(draw.is_gold for draw in order(share=share).batch(step)) for step in range(20)} == {expected}


def test_the_order_is_a_function_of_seed_and_step() -> None:
    assert [order().batch(step) for step in (7, 2)] == [order().batch(7), order().batch(2)]
    assert order(seed=1).batch(0) != order().batch(0)
    seeds = [draw.seed for step in range(50) for draw in order().batch(step)]
    assert len(set(seeds)) == len(seeds)


def test_passes_differ() -> None:
    planned = order(num_gold=0, num_pseudo=16, batch=16)
    first, second = ([draw.index for draw in planned.batch(step)] for step in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize(("gold", "pseudo", "batch"), [(0, 23, 8), (5, 0, 8), (5, 23, 8), (5, 24, 8)])
def test_an_epoch_is_a_pass_over_the_pseudo_labelled_or_else_over_gold(gold: int, pseudo: int, batch: int) -> None:
    planned = order(gold, pseudo, 0.25, batch)
    places = 8 if not gold or not pseudo else 6
    assert planned.steps_per_epoch == math.ceil((pseudo or gold) / places)
    assert planned.num_steps(LengthConfig(epochs=3)) == 3 * planned.steps_per_epoch
    assert planned.num_steps(LengthConfig(steps=7)) == 7


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(SourceError, match="no image"):
        order(0, 0)
    with pytest.raises(ConfigError, match=r"gold\.share 1\.0 of length\.batch_images 8"):
        order(share=1.0)
    with pytest.raises(ConfigError, match="fewer than the 9 workers"):
        portion(order().batch(0), 0, 9)
