"""Tensors of a checkpoint file, read without unpickling, and their digest. Knows no architecture."""

import argparse
import hashlib
import pickle
import re
import warnings
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
    if path.suffix.lower() != ".safetensors":
        return plain_weights(_load_pth(path), str(path))
    try:
        return plain_weights(safetensors.torch.load_file(path), str(path))
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged or not a safetensors file: {error}") from error
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error


def _load_pth(path: Path) -> Any:
    """What a `.pth` file holds, refusing anything that unpickling would have to run."""
    try:
        # torchvision's training scripts store their parsed arguments, which are plain data too.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(_refusal(path, str(error))) from error
    except FileNotFoundError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or ["empty"])[0]
        raise ModelError(f"{path} is damaged or not a checkpoint: {first}") from error


def _refusal(path: Path, reason: str) -> str:
    foreign = re.search(r"GLOBAL (\S+)", reason)
    if foreign is None:
        return f"{path} is damaged or not a checkpoint"
    return (
        f"{path} is not plain tensors: loading it would run {foreign[1]}; if you trust it, convert it with "
        'torch.save(torch.load(FILE, weights_only=False).state_dict(), "plain.pth")'
    )


def plain_weights(loaded: Any, where: str) -> dict[str, Tensor]:
    """Name to tensor, without wrappers; see `read_weights`."""
    for name in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(held, Tensor) for held in loaded.values()):
        raise ModelError(
            f"{where} holds no state dict: expected names with tensors, or one under {' or '.join(WRAPPERS)}"
        )
    return {str(name).removeprefix("module."): _raised(tensor) for name, tensor in loaded.items()}


def _raised(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse what no detection can come of: usually a training that diverged.

    Raises:
        ModelError: names the first tensor with a NaN or an infinity.
    """
    for name, tensor in weights.items():
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise ModelError(f"{where}: {bad} of {tensor.numel()} numbers in {name} are not finite")


def digest_weights(weights: Mapping[str, Tensor], settings: Sequence[object]) -> str:
    """`sha256:<hex>` over every tensor (name, type, shape, bytes), sorted by name, and over what else makes the model.

    The counters of batches seen in training are left out: they change no detection, and not every format has them.

    Args:
        weights: named tensors.
        settings: strings, numbers, None and tuples or lists of them; their `repr` counts.
    """
    sha = hashlib.sha256(repr(tuple(settings)).encode())
    for name in sorted(weights):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = weights[name].detach().cpu().contiguous()
        sha.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return "sha256:" + sha.hexdigest()
