"""Parts run by torch, as they are or rearranged for a CPU. Knows no other backend."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from batchdet.engine.backends.backend import Settings
from batchdet.engine.folding import folded
from batchdet.engine.parts import Network, Part

_AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Eager:
    """Torch, one kernel after the other.

    Attributes:
        folds: normalisations are folded into convolutions first, and memory is channels last: about 1.6 times as fast
            on a CPU, and another rounding.
    """

    folds: bool = False

    @property
    def name(self) -> str:
        """`torch-<version>`."""
        return f"torch-{torch.__version__}" + ("-folded" if self.folds else "")

    def load(self, name: str, part: Part, settings: Settings) -> Network:
        """See `Backend.load`."""
        module = folded(part.module) if self.folds else part.module
        return _Eager(module.to(settings.device), _AUTOCAST[settings.precision])


@dataclass(frozen=True, slots=True)
class _Eager:
    module: nn.Module
    autocast: torch.dtype | None

    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]:
        enabled = self.autocast is not None
        with torch.inference_mode(), torch.autocast(pixels.device.type, self.autocast, enabled=enabled):
            outputs: tuple[Tensor, ...] = self.module(pixels)
        return tuple(output.float() for output in outputs)
