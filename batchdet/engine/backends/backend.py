"""What the choice of a backend asks of each. Knows none of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from batchdet.engine.parts import Network, Part

Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Where and how exactly a part is to run.

    Attributes:
        device: of the inputs and outputs.
        threads: of the backend's own pool, where it has one.
        precision: arithmetic of the part; inputs and outputs are float32 whatever it is.
        graphs: folder for exported graphs of this model, by the model's digest; may not exist yet. None: no place.
    """

    device: torch.device
    threads: int
    precision: Precision
    graphs: Path | None


class BackendError(Exception):
    """A backend cannot run a part as asked; never leaves `choice`."""


class Backend(Protocol):
    """One way to run parts."""

    @property
    def name(self) -> str:
        """Name and version, as recorded with the rows: `openvino-2026.4.1`."""

    def load(self, name: str, part: Part, settings: Settings) -> Network:
        """The part, ready to run.

        Args:
            name: of the part.
            part: the part.
            settings: where and how.

        Raises:
            BackendError: it cannot, said in one line.
        """
