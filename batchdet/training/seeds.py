"""Random numbers as pure functions of a key: no state to save, the same on any number of workers. Knows no use."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*key: int) -> int:
    """A seed in [0, 2**63) from whole numbers that are not negative."""
    high, low = np.random.SeedSequence(key).generate_state(2, np.uint32).tolist()
    return int((high << 32 | low) >> 1)


@contextmanager
def torch_seed(seed: int | None, device: torch.device) -> Iterator[None]:
    """Inside, torch draws from this seed, on the CPU and on the device; afterwards from where it stood before.

    Args:
        seed: None leaves torch's generators alone.
        device: of the tensors that are drawn.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
