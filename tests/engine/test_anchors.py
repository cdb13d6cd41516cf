"""Default boxes and anchors: torchvision's own in float32, whatever the network computes in."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from batchdet.engine.anchors import reference_boxes
from batchdet.engine.backends.backend import Precision
from batchdet.engine.families import FAMILIES
from tests.engine.seeded import batch_of, eager_networks, pictures, seeded_model

MODELS: dict[str, str] = {
    "ssdlite320_mobilenet_v3_large": "anchor_generator",
    "fasterrcnn_mobilenet_v3_large_320_fpn": "rpn.anchor_generator",
}


@cache
def stock_model(architecture: str) -> nn.Module:
    return seeded_model(architecture)


def references_of(architecture: str, precision: Precision) -> list[Tensor]:
    """What the generator gives during a pass in that precision."""
    model: Any = copy.deepcopy(stock_model(architecture))
    seen: list[Tensor] = []
    generator = model.get_submodule(MODELS[architecture])
    generator.register_forward_hook(lambda _module, _inputs, output: seen.extend(output))
    with torch.inference_mode():
        networks = eager_networks(architecture, model, precision)
        FAMILIES[architecture].detect(model, networks, batch_of(model, pictures((120, 160), (150, 200))))
    return seen


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("architecture", MODELS)
def test_references_are_bit_equal_across_precisions(architecture: str, precision: Precision) -> None:
    (full,), (half,) = references_of(architecture, "fp32"), references_of(architecture, precision)
    assert half.dtype == torch.float32
    assert torch.equal(full, half)


def anchor_generator() -> Any:
    return AnchorGenerator(((32,), (64,)), ((0.5, 1.0, 2.0),) * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_references_are_torchvisions_for_every_shape(dtype: torch.dtype) -> None:
    generator = anchor_generator()
    for height, width in ((320, 448), (448, 320), (320, 448)):
        pixels = torch.zeros(2, 3, height, width)
        maps = [torch.zeros(2, 8, height // stride, width // stride) for stride in (16, 32)]
        (expected,) = anchor_generator()(ImageList(pixels, [(height, width)]), maps)
        found = reference_boxes(generator, pixels, [level.to(dtype) for level in maps])
        assert torch.equal(found, expected)


def test_references_of_a_shape_are_made_once() -> None:
    generator = anchor_generator()
    maps = [torch.zeros(1, 8, 20, 20), torch.zeros(1, 8, 10, 10)]
    first = reference_boxes(generator, torch.zeros(1, 3, 320, 320), maps)
    assert reference_boxes(generator, torch.zeros(1, 3, 320, 320), [level.half() for level in maps]) is first
    assert reference_boxes(anchor_generator(), torch.zeros(1, 3, 320, 320), maps) is not first
