"""Parts run by ONNX Runtime on the CPU. Knows no other backend."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as states
from torch import Tensor

from batchdet.engine.backends.backend import BackendError, Settings
from batchdet.engine.backends.graphs import kept
from batchdet.engine.parts import Network, Part

GRAPH = "graph.onnx"
OPSET = 20
REFUSALS = (
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NoSuchFile,
    states.NotImplemented,
    states.RuntimeException,
)


@dataclass(frozen=True, slots=True)
class ONNXRuntime:
    """Microsoft's runtime, with its CPU kernels."""

    @property
    def name(self) -> str:
        """`onnxruntime-<version>`."""
        return f"onnxruntime-{onnxruntime.__version__}"

    def load(self, name: str, part: Part, settings: Settings) -> Network:
        """See `Backend.load`."""
        if settings.precision != "fp32":
            raise BackendError(f"{self.name}: its CPU kernels have no {settings.precision}")
        # It reports its use to its maker otherwise.
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        # Waiting threads would spin on cores that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = kept(name, part, settings.graphs, f"opset-{OPSET}", _export) / GRAPH
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except (*REFUSALS, OSError) as error:
            raise BackendError(f"{self.name} does not take it: {str(error).splitlines()[0]}") from error
        return _Session(session, session.get_inputs()[0].name)


def _export(part: Part, folder: Path) -> None:
    free = dict.fromkeys(part.free, torch.export.Dim.DYNAMIC)
    try:
        # The exporter warns of its own inner workings.
        with warnings.catch_warnings(action="ignore"):
            torch.onnx.export(
                part.module,
                (part.example,),
                folder / GRAPH,
                dynamo=True,
                dynamic_shapes=(free,),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except ImportError as error:
        raise BackendError(f"torch's exporter needs {error.name}; pip install onnx onnxscript") from error
    except torch.onnx.errors.OnnxExporterError as error:
        raise BackendError(f"torch cannot export it: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True, slots=True)
class _Session:
    session: Any = field(repr=False)
    input_name: str

    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]:
        outputs = self.session.run(None, {self.input_name: pixels.contiguous().numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)
