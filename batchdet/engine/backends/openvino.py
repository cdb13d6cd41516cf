"""Parts run by OpenVINO on the CPU. Knows no other backend."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor

from batchdet.engine.backends.backend import BackendError, Settings
from batchdet.engine.backends.graphs import kept
from batchdet.engine.parts import Network, Part

GRAPH = "graph.xml"
"""OpenVINO's own format; the weights lie beside it."""
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_CAPABILITIES = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16"}


@dataclass(frozen=True, slots=True)
class OpenVINO:
    """Intel's runtime; fast on any x86-64 or Arm core."""

    @property
    def name(self) -> str:
        """`openvino-<version>`."""
        return f"openvino-{openvino.__version__.split('-')[0]}"

    def load(self, name: str, part: Part, settings: Settings) -> Network:
        """See `Backend.load`."""
        core = openvino.Core()
        if _CAPABILITIES[settings.precision] not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError(f"{self.name}: this CPU has no {settings.precision} that OpenVINO uses")
        try:
            graph = core.read_model(kept(name, part, settings.graphs, self.name, _export) / GRAPH)
            if part.takes_pictures:
                graph.reshape({0: [1, *part.example.shape[1:]]})
            request = core.compile_model(graph, "CPU", _properties(settings)).create_infer_request()
            return _OneByOne(request) if part.takes_pictures else _Compiled(request)
        except RuntimeError as error:
            raise BackendError(f"{self.name} does not take it: {_last_line(error)}") from error


def _export(part: Part, folder: Path) -> None:
    # Not `openvino.convert_model`, which reports each use to its maker over the network.
    frontend = FrontEndManager().load_by_framework("pytorch")
    # Its tracing warns of Python branches on shapes, which the comparison with torch's numbers covers.
    with warnings.catch_warnings(action="ignore"):
        # Held to the end: the graph reads its weights from it.
        decoder = TorchScriptPythonDecoder(part.module, example_input=part.example)
        graph = frontend.convert(frontend.load(decoder))
    shape = [-1 if dim in part.free else size for dim, size in enumerate(part.example.shape)]
    graph.reshape({0: shape})
    openvino.save_model(graph, folder / GRAPH, compress_to_fp16=False)


def _properties(settings: Settings) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[settings.precision],
        "INFERENCE_NUM_THREADS": settings.threads,
        "NUM_STREAMS": 1,
        # It pins its threads to the first cores it sees: processes with a thread each would share one core.
        "ENABLE_CPU_PINNING": False,
    }


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[-1]


@dataclass(slots=True)
class _OneByOne:
    """A graph of known sizes, run for each picture of the batch.

    With sizes known OpenVINO plans its memory, and what one image needs stays in a core's cache: on the whole a sixth
    faster than a batch, and what an image gives cannot depend on its neighbours.
    """

    request: Any = field(repr=False)
    held: tuple[NDArray[np.float32], ...] = field(default=(), repr=False)

    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]:
        count, images = len(pixels), pixels.contiguous().numpy()
        if not self.held or len(self.held[0]) < count:
            shapes = [tuple(output.shape) for output in self.request.model_outputs]
            self.held = tuple(np.empty((count, *shape[1:]), np.float32) for shape in shapes)
        for place in range(count):
            for index, array in enumerate(self.held):
                self.request.set_output_tensor(index, openvino.Tensor(array[place : place + 1], shared_memory=True))
            self.request.infer([images[place : place + 1]], share_inputs=True, share_outputs=True)
        return tuple(torch.from_numpy(array[:count]) for array in self.held)


@dataclass(frozen=True, slots=True)
class _Compiled:
    request: Any = field(repr=False)

    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]:
        outputs = self.request.infer([pixels.contiguous().numpy()], share_inputs=True, share_outputs=True)
        return tuple(torch.from_numpy(outputs[index]) for index in range(len(outputs)))
