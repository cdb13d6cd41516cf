"""All that a training must remember, as safetensors and JSON in a folder. Knows no network and no optimiser.

Random numbers, the learning rate and the order of images are functions of seed and step: none of them is remembered.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from batchdet.errors import ConfigError, ModelError

TENSORS_NAME = "state.safetensors"
FACTS_NAME = "state.json"


@dataclass(frozen=True, slots=True)
class TrainState:
    """A training between two steps.

    Attributes:
        tensors: by name, on the CPU.
        facts: plain values: the step, the job, the scaler of half precision.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name begins with `prefix.`, without it."""
        return {
            name.removeprefix(f"{prefix}."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{prefix}.")
        }


def write_state(state: TrainState, folder: Path) -> None:
    """Write both files; the facts last, so that a folder with facts is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, folder / TENSORS_NAME)
    (folder / FACTS_NAME).write_text(json.dumps(dict(state.facts), sort_keys=True), encoding="utf-8")


def read_state(folder: Path) -> TrainState:
    """What `write_state` wrote.

    Raises:
        ModelError: it is not there, or damaged.
    """
    try:
        facts = json.loads((folder / FACTS_NAME).read_text(encoding="utf-8"))
        return TrainState(load_file(folder / TENSORS_NAME), facts)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{folder} is not a checkpoint of a training: {error}") from error


def require_same_job(found: Mapping[str, Any], wanted: Mapping[str, Any], path: str = "") -> None:
    """Refuse to go on with another job's checkpoint.

    Raises:
        ConfigError: names the first field that differs.
    """
    for name in sorted({*found, *wanted}):
        field = f"{path}.{name}".lstrip(".")
        one, other = found.get(name), wanted.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            require_same_job(one, other, field)
        elif one != other:
            raise ConfigError(
                f"{field}: the checkpoint was made with {one!r}, the job says {other!r}; give it a new name"
            )
