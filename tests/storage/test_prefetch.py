"""Loads run ahead, in order, within bounds of count and of bytes; nothing is left running."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import pytest

from batchdet.storage.prefetch import Prefetch, prefetch

PATIENCE_S = 30
MOMENT_S = 0.2


@dataclass(frozen=True)
class Thing:
    number: int
    nbytes: int = 1


class Loader:
    """Loads when told to: each load waits for its permit. Knows what has begun."""

    def __init__(self, nbytes: int = 1) -> None:
        self.nbytes = nbytes
        self.begun: list[int] = []
        self._changed = threading.Condition()
        self._permitted: set[int] = set()

    def __call__(self, number: int) -> Thing:
        with self._changed:
            self.begun.append(number)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: number in self._permitted, PATIENCE_S)
        return Thing(number, self.nbytes)

    def permit(self, *numbers: int) -> None:
        with self._changed:
            self._permitted.update(numbers)
            self._changed.notify_all()

    def await_begun(self, count: int) -> list[int]:
        """What has begun once `count` have; a moment is left for one too many to show itself."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) >= count, PATIENCE_S)
            self._changed.wait_for(lambda: len(self.begun) > count, MOMENT_S)
            return sorted(self.begun)


class WatchedPool(ThreadPoolExecutor):
    """Says when it was told to shut down, before it waits for its threads."""

    told: threading.Event

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        self.told.set()
        super().shutdown(wait=wait)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("batchdet-prefetch")]
    assert left == []


@pytest.mark.parametrize("depth", [1, 2, 7, 100])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("max_bytes", [1, 25, 10**9])
def test_order_is_kept(depth: int, threads: int, max_bytes: int) -> None:
    loaded = prefetch(range(40), lambda number: Thing(number, number % 7), depth, max_bytes, threads)
    assert [thing.number for thing in loaded] == list(range(40))


def test_nothing_to_load() -> None:
    assert list(prefetch([], Thing, 2, 10)) == []


def test_begins_before_it_is_asked() -> None:
    loader = Loader()
    with closing(prefetch(range(5), loader, depth=2, max_bytes=100)):
        assert loader.await_begun(1) == [0]
        loader.permit(*range(5))


def test_depth_bounds_what_is_ahead() -> None:
    loader = Loader()
    with closing(prefetch(range(20), loader, depth=3, max_bytes=10**9, threads=8)) as loaded:
        assert loader.await_begun(1) == [0], "one by one until a size is known"
        loader.permit(0)
        assert loader.await_begun(3) == [0, 1, 2]
        assert next(loaded).number == 0
        assert loader.await_begun(4) == [0, 1, 2, 3]
        loader.permit(*range(20))
        assert [thing.number for thing in loaded] == list(range(1, 20))


def test_bytes_bound_what_is_ahead() -> None:
    loader = Loader(nbytes=40)
    with closing(prefetch(range(20), loader, depth=10, max_bytes=100, threads=8)) as loaded:
        loader.permit(0)
        assert loader.await_begun(2) == [0, 1], "three would be 120 bytes"
        assert next(loaded).number == 0
        assert loader.await_begun(3) == [0, 1, 2]
        loader.permit(*range(20))
        assert len(list(loaded)) == 19


def test_one_over_the_bound_is_let_through() -> None:
    assert len(list(prefetch(range(3), lambda number: Thing(number, 1000), 4, 10, 2))) == 3


def test_exception_comes_in_its_place() -> None:
    def load(number: int) -> Thing:
        if number == 3:
            raise ZeroDivisionError("number three")
        return Thing(number)

    loaded = prefetch(range(10), load, depth=4, max_bytes=100, threads=2)
    assert [next(loaded).number for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError, match="number three"):
        next(loaded)
    with pytest.raises(StopIteration):
        next(loaded)


def test_close_cancels_what_has_not_begun() -> None:
    loader = Loader()
    pool = WatchedPool(1, "batchdet-prefetch")
    pool.told = threading.Event()
    loaded = Prefetch(deque(range(20)), loader, 8, 10**9, pool)
    loader.permit(0, 1)
    assert next(loaded).number == 0
    assert loader.await_begun(3) == [0, 1, 2]
    closer = threading.Thread(target=loaded.close)
    closer.start()
    assert pool.told.wait(PATIENCE_S)
    loader.permit(*range(20))
    closer.join(PATIENCE_S)
    assert not closer.is_alive()
    assert sorted(loader.begun) == [0, 1, 2], "the rest was never begun"
    assert list(loaded) == []


@pytest.mark.parametrize("bounds", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_bounds_are_checked(bounds: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        prefetch([1], Thing, *bounds)


def test_a_broken_list_of_blocks_is_raised_at_once() -> None:
    def blocks() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    make: Callable[[], object] = lambda: prefetch(blocks(), Thing, 2, 10)  # noqa: E731
    with pytest.raises(ZeroDivisionError):
        make()
