"""Counts the work of code under test: operations that launch a kernel on a device, and waits for their results."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = frozenset(
    {
        "aten::nonzero",
        "aten::masked_select",
        "aten::_local_scalar_dense",
        "aten::equal",
        "aten::bincount",
        "aten::_unique2",
        "aten::unique_dim",
        "aten::unique_consecutive",
        "aten::repeat_interleave",
        "torchvision::nms",
    }
)
"""Operations after which the host must read a number from a device before it can go on."""


class Work(TorchDispatchMode):
    """Counts below autograd, where every operation left is one of a backend's. Not to be used in inference mode.

    Attributes:
        launches: by name, operations that fill a tensor, constants copied to the device among them; views are no work.
        waits: by name, operations the host waits for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        schema = function._schema
        aliases = [result.alias_info for result in schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        if not view or schema.name == "aten::lift_fresh":
            self.launches[schema.name] += 1
        if schema.name in WAITS or _takes_a_mask(schema.name, args):
            self.waits[schema.name] += 1
        return function(*args, **(kwargs or {}))


def _takes_a_mask(name: str, args: Sequence[Any]) -> bool:
    places = args[1] if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_") else []
    return any(isinstance(place, Tensor) and place.dtype == torch.bool for place in places)
