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
    r"|bad_alloc|[Ff]ailed to allocate memory"
)
"""What is said without a type of its own: by CUDA's libraries and pinned memory, a CPU's allocator, CPU runtimes."""


@contextmanager
def memory_border() -> Iterator[None]:
    """Turns errors of torch and other runtimes for want of memory into ours; every other error passes.

    Raises:
        OutOfMemoryError: in one line, from the cause.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and _WANT_OF_MEMORY.search(str(error)) is None:
            raise
        raise OutOfMemoryError((str(error).splitlines() or ["no memory"])[0]) from error
