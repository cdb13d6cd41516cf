"""What a core can do at best: how long a network's multiplications alone must take. Knows no images and no backend."""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from batchdet.engine.parts import Part

SIDE = 1024
"""Of the matrices multiplied: large enough for a library's best kernel, small enough for a core's caches."""


def flops_per_second(rounds: int = 20) -> float:
    """Floating point operations a second of float32 matrix products on this thread; the best of some rounds."""
    one, other = torch.rand(2, SIDE, SIDE)
    spent = []
    for _ in range(rounds):
        started = time.process_time()
        one @ other
        spent.append(time.process_time() - started)
    return 2 * SIDE**3 / min(spent)


def flops_of(part: Part) -> float:
    """Floating point operations of a part for one image, as torch counts them: convolutions and products."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        part.module(part.example)
    return counter.get_total_flops() / len(part.example)
