"""Every backend computes torch's numbers, `auto` takes none that does not, and a graph is exported once."""

from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchdet.config import BackendName, ModelConfig
from batchdet.demo.scenes import draw_scenes
from batchdet.demo.shipped import shipped_model
from batchdet.engine.backends.backend import BackendError, Precision, Settings
from batchdet.engine.backends.choice import choose, is_installed
from batchdet.engine.backends.eager import Eager
from batchdet.engine.backends.graphs import kept
from batchdet.engine.checkpoint import load_detector, load_model
from batchdet.engine.decode import decode
from batchdet.engine.families import FAMILIES
from batchdet.engine.folding import folded
from batchdet.engine.parts import Drift, Networks, Part
from batchdet.errors import ModelError
from batchdet.records import ModelFiles
from tests.engine.seeded import batch_of, pictures, seeded_model

SSDLITE, RCNN = "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"
SHIPPED = shipped_model() / "1"
SHIPPED_FILES = ModelFiles(SHIPPED / "model.safetensors", SHIPPED / "model.json")
CPU = torch.device("cpu")
BACKENDS: tuple[BackendName, ...] = ("torch", "openvino", "onnxruntime")
ROUNDING = 4.0
"""How many times float32's error of torch a backend's may be: it adds in another order, with the same precision."""


def require(backend: BackendName) -> None:
    if backend != "torch":
        pytest.importorskip(backend)


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported graphs of seeded models, whose seed is always the same, by architecture."""
    return tmp_path_factory.mktemp("graphs")


@cache
def shipped_scenes() -> tuple[Tensor, ...]:
    scenes = [decode(scene.data, 10**9).pixels.copy() for scene in islice(draw_scenes(3, 12), 12)]
    return tuple(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 for pixels in scenes)


def load(architecture: str, model: nn.Module, backend: BackendName, graphs: Path, precision: Precision = "fp32") -> Any:
    settings = Settings(CPU, 1, precision, graphs)
    family = FAMILIES[architecture]
    return choose(backend, family.parts(model), settings, partial(family.drift, model))


@pytest.mark.parametrize("backend", BACKENDS)
def test_trained_weights_give_stock_rows(backend: BackendName) -> None:
    require(backend)
    detector = load_detector(ModelConfig(reference="shipped", backend=backend), SHIPPED_FILES, "cpu")
    assert detector.backend.startswith(backend)
    plain, _ = load_model(ModelConfig(reference="shipped", score_floor=0.05), SHIPPED_FILES)
    for pixels in shipped_scenes():
        with torch.inference_mode():
            (expected,) = plain([pixels])
        above = expected["scores"] > 0.05
        found = detector.detect(batch_of(plain, [pixels]))
        assert found.labels.tolist() == expected["labels"][above].tolist()
        np.testing.assert_allclose(found.scores, expected["scores"][above], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected["boxes"][above], rtol=0, atol=1e-3)


def test_auto_takes_the_fastest_installed_for_trained_weights() -> None:
    detector = load_detector(ModelConfig(reference="shipped"), SHIPPED_FILES, "cpu")
    wanted = next((name for name in ("openvino", "onnxruntime") if is_installed(name)), "torch")
    assert detector.backend.startswith(wanted)
    assert detector.backend.endswith("/fp32")


@pytest.mark.parametrize("wanted", ["auto", "torch"])
def test_weights_that_magnify_rounding_run_as_they_are(
    wanted: BackendName, graphs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Seeded weights have channels of hardly any variance, where rounding grows beyond what counts as equal."""
    choice = load(SSDLITE, seeded_model(SSDLITE), wanted, graphs / SSDLITE)
    assert choice.name == f"torch-{torch.__version__}/fp32"
    assert "boxes by" in caplog.text, "what was left out must be said"


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    "architecture",
    [
        SSDLITE,
        RCNN,
        *(pytest.param(name, marks=pytest.mark.slow) for name in sorted({*FAMILIES} - {SSDLITE, RCNN})),
    ],
)
def test_every_part_is_as_exact_as_torch(architecture: str, backend: BackendName, graphs: Path) -> None:
    """Against the same network in float64: on another size and number of pictures than it was exported with."""
    require(backend)
    model = seeded_model(architecture)
    inputs: dict[str, Tensor] = {
        "network": batch_of(model, pictures((120, 160), (90, 200), (300, 300))).pixels,
        "trunk": batch_of(model, pictures((200, 160))).pixels,
        "region_head": torch.randn(3, 256, 7, 7, generator=torch.Generator().manual_seed(0)),
    }
    networks: Networks = load(architecture, model, backend, graphs / architecture).networks
    for name, part in FAMILIES[architecture].parts(model).items():
        with torch.inference_mode():
            eager = part.module(inputs[name])
            mine = [output.clone() for output in networks[name](inputs[name])]
            exact = part.module.double()(inputs[name].double())
            part.module.float()
        for ours, torchs, truth in zip(mine, eager, exact, strict=True):
            allowed = ROUNDING * float((torchs - truth).abs().max()) + 1e-6 * float(truth.abs().max())
            assert float((ours - truth).abs().max()) <= allowed


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_an_rcnn_is_detected_in_both_halves(backend: BackendName, graphs: Path) -> None:
    require(backend)
    model = seeded_model(RCNN)
    networks = load(RCNN, model, backend, graphs / RCNN).networks
    batch = batch_of(model, pictures((120, 160), (240, 320)))
    with torch.inference_mode():
        found = FAMILIES[RCNN].detect(model, networks, batch)
    assert found.finite.all()
    assert found.image_index.bincount().min() > 10


def test_neighbours_change_no_bit_of_an_image_where_openvino_knows_the_size(graphs: Path) -> None:
    require("openvino")
    network = load(SSDLITE, seeded_model(SSDLITE), "openvino", graphs).networks["network"]
    pixels = torch.rand(5, 3, 320, 320, generator=torch.Generator().manual_seed(1))
    together = [output.clone() for output in network(pixels)]
    # Fewer than before, then as many again: what is held from call to call must not show.
    for batch in (pixels[3:], pixels.flip(0)):
        alone = [
            torch.cat(outputs)
            for outputs in zip(*([o.clone() for o in network(one[None])] for one in batch), strict=True)
        ]
        for output, single in zip(network(batch), alone, strict=True):
            assert torch.equal(output, single)
    for output, first in zip(network(pixels), together, strict=True):
        assert output.shape[0] == 5 and torch.equal(output, first)


def test_openvino_takes_pictures_one_by_one_and_regions_together(graphs: Path) -> None:
    """A thousand runs of a region head would each read all of its weights."""
    require("openvino")
    ssd = load(SSDLITE, seeded_model(SSDLITE), "openvino", graphs).networks["network"]
    assert list(ssd.request.model_inputs[0].partial_shape.to_shape()) == [1, 3, 320, 320]
    rcnn = load(RCNN, seeded_model(RCNN), "openvino", graphs).networks["region_head"]
    assert rcnn.request.model_inputs[0].partial_shape[0].is_dynamic


def test_a_named_backend_with_other_numbers_runs_and_says_so(graphs: Path, caplog: pytest.LogCaptureFixture) -> None:
    require("openvino")
    choice = load(SSDLITE, seeded_model(SSDLITE), "openvino", graphs / SSDLITE)
    assert choice.name.startswith("openvino")
    assert "model.backend asks for it" in caplog.text


@pytest.mark.parametrize(("wanted", "device"), [("openvino", "cuda"), ("onnxruntime", "cuda:1")])
def test_a_backend_for_cpus_refuses_a_gpu(wanted: BackendName, device: str, tmp_path: Path) -> None:
    settings = Settings(torch.device(device), 1, "fp32", tmp_path)
    with pytest.raises(ModelError, match=f"model.backend {wanted} runs on CPUs only"):
        choose(wanted, {}, settings, lambda mine, stock: pytest.fail("nothing to measure"))


def test_a_precision_no_kernel_has_is_one_line(tmp_path: Path) -> None:
    require("onnxruntime")
    with pytest.raises(ModelError, match=r"model\.precision bf16: onnxruntime") as raised:
        load(SSDLITE, seeded_model(SSDLITE), "onnxruntime", tmp_path, "bf16")
    assert "\n" not in str(raised.value)


def test_a_graph_is_exported_once_and_half_a_graph_is_never_taken_for_it(tmp_path: Path) -> None:
    part, made = Part(nn.Identity(), torch.zeros(2, 3), free=(0,)), []

    def fail(part: Part, folder: Path) -> None:
        (folder / "graph").write_bytes(b"half")
        raise KeyboardInterrupt

    def make(part: Part, folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "graph").write_bytes(b"whole")
        made.append(folder)

    with pytest.raises(KeyboardInterrupt):
        kept("part", part, tmp_path / "graphs", "made-1", fail)
    folders = [kept("part", part, tmp_path / "graphs", "made-1", make) for _ in range(2)]
    assert folders[0] == folders[1]
    assert (folders[0] / "graph").read_bytes() == b"whole"
    assert len(made) == 1
    assert kept("part", part, tmp_path / "graphs", "made-2", make) != folders[0], "another exporter, another graph"


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BackendError, match="XDG_CACHE_HOME") as raised:
        kept("part", Part(nn.Identity(), torch.zeros(2, 3), free=(0,)), tmp_path / "file" / "graphs", "made", _never)
    assert "\n" not in str(raised.value)


def _never(part: Part, folder: Path) -> None:
    raise AssertionError("nothing to make")


def test_a_graph_that_was_changed_is_made_anew(tmp_path: Path) -> None:
    """A file gone wrong, or put there by somebody, would give other rows and no error."""
    require("openvino")
    model, _ = load_model(ModelConfig(reference="shipped"), SHIPPED_FILES)
    pixels = torch.rand(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    expected = load(SSDLITE, model, "openvino", tmp_path).networks["network"](pixels)[1].clone()
    (weights,) = tmp_path.rglob("*.bin")
    whole = weights.read_bytes()
    weights.write_bytes(bytes(len(whole)))
    found = load(SSDLITE, model, "openvino", tmp_path).networks["network"](pixels)[1]
    assert torch.equal(found, expected)
    assert weights.read_bytes() == whole


def test_a_folder_others_may_write_to_is_not_trusted(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(BackendError, match="others may write there"):
        kept("part", Part(nn.Identity(), torch.zeros(2, 3), free=(0,)), tmp_path, "made", _never)


def test_no_home_is_one_line_for_those_who_need_it(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="XDG_CACHE_HOME"):
        kept("part", Part(nn.Identity(), torch.zeros(2, 3), free=(0,)), None, "made", _never)


def test_a_broken_network_runs_nowhere(tmp_path: Path) -> None:
    require("openvino")
    settings = Settings(CPU, 1, "fp32", tmp_path)
    parts = {"network": Part(_Double(), torch.zeros(2, 3), free=(0,))}
    for drift in (Drift(0.6, 0.0), Drift(float("nan"), 0.0)):
        with pytest.raises(ModelError, match="scores differ by"):
            choose("openvino", parts, settings, lambda mine, stock, drift=drift: drift)  # type: ignore[misc]


class _Double(nn.Module):
    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return (pixels * 2,)


def test_folding_leaves_the_network_alone_and_no_norm_behind() -> None:
    model = seeded_model(SSDLITE)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (part,) = FAMILIES[SSDLITE].parts(model).values()
    fast = folded(part.module)
    assert _norms(part.module) > 0
    assert _norms(fast) == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_half_precision_gives_float32_outputs(tmp_path: Path) -> None:
    model = seeded_model(SSDLITE)
    choice = load(SSDLITE, model, "torch", tmp_path, "bf16")
    outputs = choice.networks["network"](torch.zeros(1, 3, 320, 320))
    assert {output.dtype for output in outputs} == {torch.float32}
    assert Eager().name in choice.name.replace("-folded", "")


def _norms(module: nn.Module) -> int:
    return sum(isinstance(inner, nn.BatchNorm2d) for inner in module.modules())
