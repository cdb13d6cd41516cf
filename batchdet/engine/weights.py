"""Tensors of a checkpoint file, read without unpickling, and their digest. Knows no architecture."""

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from batchdet.errors import ModelError

WRAPPERS = ("model", "state_dict")
"""Keys under which training scripts store the weights beside optimiser and epoch."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a `.safetensors` or `.pth` file, on the CPU, half precision raised to float32.

    A wrapping `{"model": …}` or `{"state_dict": …}` and the `module.` of data-parallel training are taken off.

    Raises:
        ModelError: the file is missing, damaged, or holds anything but plain tensors.
    """
    try:
        loaded = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else load_tensors(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from error
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    return plain_weights(loaded, str(path))


def load_tensors(path: Path) -> Any:
    """What a `.pth` file holds, refusing anything that unpickling would have to run.

    Raises:
        ModelError: damaged, or not plain tensors.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is not plain tensors, so loading it would run code; where you trust it, convert it: "
            "safetensors.torch.save_file(torch.load(path, weights_only=False).state_dict(), 'model.safetensors')"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(f"{path} is damaged or not a checkpoint: {str(error).splitlines()[0]}") from error


def plain_weights(loaded: Any, where: str) -> dict[str, Tensor]:
    """Name to tensor, without wrappers; see `read_weights`."""
    for name in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ModelError(
            f"{where} holds no state dict: expected names with tensors, or one under {' or '.join(WRAPPERS)}"
        )
    return {str(name).removeprefix("module."): _raised(tensor) for name, tensor in loaded.items()}


def _raised(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def digest_weights(architecture: str, categories: Sequence[str], weights: Mapping[str, Tensor]) -> str:
    """`sha256:<hex>` over architecture, categories and every tensor (name, type, shape, bytes), sorted by name.

    The counters of batches seen in training are left out: they change no detection, and not every format has them.
    """
    sha = hashlib.sha256(repr((architecture, tuple(categories))).encode())
    for name in sorted(weights):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = weights[name].detach().cpu().contiguous()
        sha.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return "sha256:" + sha.hexdigest()
