"""Things are loaded ahead of their use, in order and within bounds. Knows not what they are."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar


class HasBytes(Protocol):
    """What is loaded."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""


Block = TypeVar("Block")
Loaded = TypeVar("Loaded", bound=HasBytes)


def prefetch(
    blocks: Iterable[Block], load: Callable[[Block], Loaded], depth: int, max_bytes: int, threads: int = 1
) -> "Prefetch[Block, Loaded]":
    """Begin at once to load blocks in threads, and give them in order.

    At most `depth` blocks are loaded or loading beyond the one in use. Together they hold at most `max_bytes`, each
    that is still loading taken for as large as the largest so far (until a size is known they load one by one); one
    block is let through whatever its size. An exception of `load` is raised in its block's place and ends the rest.

    Args:
        blocks: small descriptions of what to load; all are taken at once.
        load: called in the threads.
        depth: at least 1.
        max_bytes: at least 1.
        threads: at least 1; more than `depth` are of no use.

    Raises:
        ValueError: depth, max_bytes or threads under 1.
    """
    if min(depth, max_bytes, threads) < 1:
        raise ValueError(f"expected depth, max_bytes and threads of at least 1, got {depth}, {max_bytes}, {threads}")
    return Prefetch(deque(blocks), load, depth, max_bytes, ThreadPoolExecutor(threads, "batchdet-prefetch"))


class Prefetch(Iterator[Loaded], Generic[Block, Loaded]):
    """An iterator of loaded blocks for one consumer; `close` ends its threads, as does its end."""

    def __init__(
        self,
        waiting: deque[Block],
        load: Callable[[Block], Loaded],
        depth: int,
        max_bytes: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._waiting = waiting
        self._load = load
        self._depth = depth
        self._max_bytes = max_bytes
        self._pool = pool
        self._ahead: deque[Future[Loaded]] = deque()
        self._largest: int | None = None
        # Loads that end at once report from inside the filling thread.
        self._lock = threading.RLock()
        self._fill()

    def __next__(self) -> Loaded:
        if not self._ahead:
            self.close()
            raise StopIteration
        try:
            loaded = self._ahead[0].result()
        except BaseException:
            self.close()
            raise
        with self._lock:
            self._ahead.popleft()
            self._fill()
        return loaded

    def close(self) -> None:
        """Load nothing more; wait for what is loading, and forget it."""
        with self._lock:
            self._waiting.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()

    def _fill(self) -> None:
        with self._lock:
            while self._waiting and self._has_room():
                future = self._pool.submit(self._load, self._waiting.popleft())
                self._ahead.append(future)
                future.add_done_callback(self._note)

    def _has_room(self) -> bool:
        held = len(self._ahead)
        if not held or self._largest is None:
            return not held
        return held < self._depth and (held + 1) * self._largest <= self._max_bytes

    def _note(self, future: Future[Loaded]) -> None:
        with self._lock:
            if future.cancelled() or future.exception() is not None:
                self._waiting.clear()
                return
            self._largest = max(self._largest or 0, future.result().nbytes)
            self._fill()
