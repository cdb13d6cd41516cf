"""A loss as a sum and what it is divided by, so that workers can divide by what all of them have. Knows no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossTerm:
    """One loss of a worker's part of a batch.

    Attributes:
        total: scalar float32, the sum over boxes, with gradient.
        count: scalar, how many boxes it is the mean of.
    """

    total: Tensor
    count: Tensor


@dataclass(frozen=True, slots=True)
class Balance:
    """The losses of a global batch.

    Attributes:
        loss: scalar with gradient: its gradient, averaged over the workers, is that of the whole batch's loss.
        values: by name, of the whole batch; the same on every worker.
        is_local_finite: whether this worker's part is all numbers.
    """

    loss: Tensor
    values: Mapping[str, float]
    is_local_finite: bool


def single(numbers: Tensor) -> Tensor:
    """Half precision becomes float32, in which losses are computed; doubles stay doubles."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def num_workers() -> int:
    """Processes that train together; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def everyone(own: Any) -> list[Any]:
    """What each worker says, in the order of their ranks. Every worker must call this."""
    if num_workers() == 1:
        return [own]
    said: list[Any] = [None] * num_workers()
    dist.all_gather_object(said, own)
    return said


def balance(names: Sequence[str], totals: Tensor, counts: Tensor, factors: Mapping[str, float]) -> Balance:
    """Divide each loss by its count over all workers, and add them up. Every worker must call this for every batch.

    Args:
        names: of the L losses; the same in the same order on every worker.
        totals: [L] float32, sums over this worker's boxes, with gradient.
        counts: [L], how many boxes each is the mean of.
        factors: of single losses; 1 where none is given.
    """
    sums = torch.stack([totals.detach(), counts.to(totals)])
    workers = num_workers()
    if workers > 1:
        dist.all_reduce(sums)
    scale = torch.tensor([factors.get(name, 1.0) for name in names], device=totals.device)
    per_box = scale / sums[1].clamp(min=1)
    # Gradients are averaged over the workers, so each part counts as often as there are workers.
    loss = (totals * per_box).sum() * workers
    values = (sums[0] * per_box).tolist()
    return Balance(loss, dict(zip(names, values, strict=True)), bool(totals.isfinite().all()))
