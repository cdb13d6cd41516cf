"""Which backend runs a detector: the fastest installed one that gives torch's numbers. Knows no family."""

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from batchdet.config import BackendName
from batchdet.engine.backends.backend import Backend, BackendError, Precision, Settings
from batchdet.engine.backends.eager import Eager
from batchdet.engine.parts import Drift, Network, Networks, Part
from batchdet.errors import ModelError

EXPORTING: tuple[tuple[BackendName, str, str, tuple[str, ...]], ...] = (
    ("openvino", "batchdet.engine.backends.openvino", "OpenVINO", ("openvino",)),
    ("onnxruntime", "batchdet.engine.backends.onnxruntime", "ONNXRuntime", ("onnxruntime", "onnx", "onnxscript")),
)
"""Backends with packages of their own, the fastest first: name, module here, class, packages."""

OWN = ("auto", "torch")
"""Wishes that leave a choice; others name one backend."""

MOST_DRIFT = 0.1
"""Of a score: above it a network is broken, whoever asks for it; rounding of weights drawn at random stays under it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """Networks ready to run.

    Attributes:
        networks: by part.
        name: backend, version and precision, as recorded with the rows: `openvino-2026.4.1/fp32`.
    """

    networks: Networks
    name: str


def choose(
    wanted: BackendName, parts: Mapping[str, Part], settings: Settings, measure: Callable[[Networks, Networks], Drift]
) -> Choice:
    """Load the parts into the backend the job names, or for `auto` into the first that gives torch's numbers.

    Without a GPU `auto` tries OpenVINO, ONNX Runtime, torch rearranged for a CPU, and torch as it is; on a GPU there is
    torch alone. Only float32 is compared: what fp16 and bf16 change is the user's to accept.

    Args:
        wanted: `model.backend` of the job.
        parts: of the detector, on the CPU.
        settings: where and how.
        measure: how far the first networks lie from the second on made pictures.

    Raises:
        ModelError: the named backend is not installed or cannot run the parts.
    """
    is_compared = settings.precision == "fp32" and settings.device.type == "cpu"
    stock = _load(Eager(), parts, settings) if is_compared else {}
    reasons = []
    for backend in _candidates(wanted, settings):
        try:
            networks = _load(backend, parts, settings)
            if is_compared:
                _check(backend.name, measure(networks, stock), is_wish=wanted not in OWN)
        except BackendError as error:
            reasons.append(str(error))
            _log.warning("left out: %s", error)
            continue
        return Choice(networks, f"{backend.name}/{settings.precision}")
    raise ModelError(f"model.backend {wanted} cannot run this model: {'; '.join(reasons)}")


def require_backend(wanted: BackendName, precision: Precision) -> None:
    """Refuse what no machine like this one can run, before anything is exported.

    Raises:
        ModelError: says what to install, or which field to change.
    """
    if wanted == "onnxruntime" and precision != "fp32":
        raise ModelError(
            f"model.precision {precision}: onnxruntime's CPU kernels have fp32 only; set model.backend=auto"
        )
    for name, _, _, packages in EXPORTING:
        if name == wanted and not all(map(is_installed, packages)):
            raise ModelError(f"model.backend {wanted} is not installed; pip install {' '.join(packages)}")


def engine_of(backend: str) -> BackendName:
    """The wish that a recorded name answers: `openvino` of `openvino-2026.4.1/fp32`."""
    engine = backend.partition("-")[0]
    return next((name for name, *_ in EXPORTING if name == engine), "torch")


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def _candidates(wanted: BackendName, settings: Settings) -> Iterator[Backend]:
    if settings.device.type != "cpu":
        if wanted not in OWN:
            raise ModelError(f"model.backend {wanted} runs on CPUs only; set model.backend=torch for {settings.device}")
        yield Eager()
        return
    require_backend(wanted, settings.precision)
    for name, module, kind, packages in EXPORTING:
        if wanted == name or (wanted == "auto" and all(map(is_installed, packages))):
            yield _Imported(name, module, kind)
    if wanted in OWN:
        yield Eager(folds=True)
        yield Eager()


@dataclass(frozen=True, slots=True)
class _Imported:
    """A backend whose package is imported when it is asked for."""

    wish: str
    module: str
    kind: str

    @property
    def name(self) -> str:
        """See `Backend.name`."""
        return self._backend.name

    def load(self, name: str, part: Part, settings: Settings) -> Network:
        """See `Backend.load`."""
        return self._backend.load(name, part, settings)

    @property
    def _backend(self) -> Backend:
        try:
            backend: Backend = getattr(importlib.import_module(self.module), self.kind)()
        except (ImportError, OSError) as error:
            raise BackendError(f"{self.wish} is installed but cannot be imported: {error}") from error
        return backend


def _load(backend: Backend, parts: Mapping[str, Part], settings: Settings) -> Networks:
    return {name: backend.load(name, part, settings) for name, part in parts.items()}


def _check(name: str, drift: Drift, is_wish: bool) -> None:
    """Leave out a backend with other numbers; one the job names runs all the same if they are near, and says so."""
    if drift.is_noise:
        return
    finding = f"scores differ by {drift.scores:.1e} and boxes by {drift.boxes:.1e} pixels from torch's"
    # Also where a score is not a number.
    if not is_wish or not drift.scores <= MOST_DRIFT:
        raise BackendError(f"{name}: {finding}")
    _log.warning("%s: %s on made pictures; model.backend asks for it", name, finding)
