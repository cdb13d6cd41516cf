"""How long a store is waited for: the one retry layer, for TransientStorageError alone. Knows no filesystem."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn, TypeVar

import tenacity

from batchdet.errors import TransientStorageError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """Exponential backoff with jitter, bounded by attempts and by time.

    Attributes:
        attempts: tries in all.
        first_wait_s: pause before the second try, seconds; doubled for each further one; each plus up to
            as much again at random.
        longest_wait_s: pauses grow no longer than this.
        give_up_s: no new try after so many seconds.
        write_s: one try to write may take so long, and a second more for every megabyte.
    """

    attempts: int = 6
    first_wait_s: float = 0.2
    longest_wait_s: float = 5.0
    give_up_s: float = 60.0
    write_s: float = 20.0

    def run(self, call: Callable[[], Result]) -> Result:
        """The result of `call`, tried again while it raises TransientStorageError.

        Raises:
            TransientStorageError: the last one, saying how often it was tried; and whatever else `call` raises.
        """
        return retrying(self)(call)


@lru_cache
def retrying(patience: Patience) -> tenacity.Retrying:
    """The rules as tenacity keeps them, for all threads: making them costs more than a try without a fault."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientStorageError),
        stop=tenacity.stop_after_attempt(patience.attempts) | tenacity.stop_after_delay(patience.give_up_s),
        wait=tenacity.wait_exponential(multiplier=patience.first_wait_s, max=patience.longest_wait_s)
        + tenacity.wait_random(0, patience.first_wait_s),
        retry_error_callback=_give_up,
    )


def _give_up(state: tenacity.RetryCallState) -> NoReturn:
    error = state.outcome.exception() if state.outcome is not None else None
    if not isinstance(error, TransientStorageError):
        raise TypeError(f"expected a TransientStorageError, got {error!r}")
    raise TransientStorageError(error.uri, f"{error.reason}; gave up after {state.attempt_number} attempts") from error


PATIENCE = Patience()
"""What is waited for a store unless a caller says otherwise."""
