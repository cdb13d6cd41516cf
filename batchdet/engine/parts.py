"""The stretches of a detector that a backend can run, and how far two ways of running them lie apart. Knows no backend.

A detector is a few networks with decisions between them. The networks are parts: functions of one tensor, whose steps
do not depend on its values, so that they can be exported. The decisions (top-k, NMS) stay with the family.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Network = Callable[[Tensor], tuple[Tensor, ...]]
"""A part as a backend runs it: float32 in, float32 out, outputs valid until its next call."""
Networks = Mapping[str, Network]
"""All parts of a detector by name."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a detector.

    Attributes:
        module: in eval mode on the CPU; from one float32 tensor to a tuple of tensors.
        example: an input; any batch of two or more.
        free: dimensions of the input whose size differs from call to call.
        takes_pictures: each element of a batch is a whole picture of the example's size: enough work for a run of its
            own. Regions and feature maps are not.
    """

    module: nn.Module
    example: Tensor
    free: tuple[int, ...]
    takes_pictures: bool = False


def own_networks(parts: Mapping[str, Part]) -> Networks:
    """The parts run by their own modules: with gradients, on whatever device and in whatever mode the model is."""
    return {name: part.module for name, part in parts.items()}


@dataclass(frozen=True, slots=True)
class Drift:
    """Largest differences between two ways to run a detector's parts, on made pictures.

    Attributes:
        scores: of any class score or objectness.
        boxes: of any side of a decoded box, in pixels of the resized frame; boxes of all positions, good or bad.
    """

    scores: float
    boxes: float

    @property
    def is_noise(self) -> bool:
        """Whether both stay within what fidelity allows: 1e-5 of a score, 1e-3 pixels."""
        return self.scores <= 1e-5 and self.boxes <= 1e-3


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference of any two numbers at the same place; not a number where either is not."""
    return float((one - other).abs().amax())


def probe_pictures(height: int, width: int) -> Tensor:
    """Two made pictures in [0, 1], [2, 3, height, width] float32: shapes of several sizes, and noise."""
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(1, 3, side, side, generator=generator) for side in (2, 5, 11, 23)]
    layers = [nn.functional.interpolate(layer, (height, width), mode="bilinear") for layer in layers]
    return torch.cat([torch.stack(layers).mean(dim=0), torch.rand(1, 3, height, width, generator=generator)])
