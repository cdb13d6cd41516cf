"""Want of memory is told from every other error of torch."""

from typing import Any

import pytest
import torch
from torch import nn

from batchdet.engine.backends.choice import Choice
from batchdet.engine.detector import Batch
from batchdet.engine.memory import memory_border
from batchdet.engine.model_detector import ModelDetector
from batchdet.engine.parts import Networks
from batchdet.errors import OutOfMemoryError
from batchdet.records import InputSpec, ModelInfo


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore advice."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later."),
    ],
    ids=str,
)
def test_want_of_memory_is_ours_in_one_line(error: RuntimeError) -> None:
    with pytest.raises(OutOfMemoryError) as raised, memory_border():
        raise error
    assert str(raised.value) == str(error).splitlines()[0]
    assert raised.value.__cause__ is error


def test_a_cpu_without_memory_is_recognised_by_what_torch_really_says() -> None:
    with pytest.raises(OutOfMemoryError, match="you tried to allocate"), memory_border():
        torch.empty(1 << 50)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        ValueError("CUDA out of memory"),
    ],
    ids=str,
)
def test_every_other_error_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, memory_border():
        raise error
    assert raised.value is error


class GreedyFamily:
    """A family whose forward pass wants more memory than there is."""

    def detect(self, model: nn.Module, networks: Networks, batch: Batch) -> Any:
        return torch.empty(1 << 50)


def test_a_detector_raises_ours() -> None:
    spec = InputSpec(None, 8, 16, 1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    info = ModelInfo("made", "made", ("__background__", "spot"), "sha256:0", spec)
    family: Any = GreedyFamily()
    detector = ModelDetector(info, nn.Linear(1, 1), family, Choice({}, "made"), torch.device("cpu"))
    with pytest.raises(OutOfMemoryError):
        detector.detect(Batch(torch.zeros(1, 3, 8, 8), ((8, 8),), ((8, 8),)))
