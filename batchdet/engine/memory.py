"""Where a device's want of memory becomes OutOfMemoryError. Knows no model and no batch."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from batchdet.errors import OutOfMemoryError

_WANT_OF_MEMORY = re.compile(
    r"CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_(HOST|DEVICE)_ALLOCATION_FAILED"
    r"|CUDA (driver )?error: out of memory"
    r"|DefaultCPUAllocator: can't allocate memory"
)
"""What torch says without a type of its own: CUDA's libraries and pinned memory, and a CPU's allocator."""


@contextmanager
def memory_border() -> Iterator[None]:
    """Turns torch's errors for want of memory into ours; every other error passes.

    Raises:
        OutOfMemoryError: in one line, from the cause.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and _WANT_OF_MEMORY.search(str(error)) is None:
            raise
        raise OutOfMemoryError(str(error).splitlines()[0]) from error
