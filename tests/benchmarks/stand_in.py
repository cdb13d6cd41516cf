"""A stand-in for a COCO-trained ssdlite320: the shipped detector with its classes multiplied to 91. Needs no download.

Weights drawn at random will not do: without training a network magnifies the float noise of its input a thousandfold.
What post-processing costs depends on how many scores pass the threshold, so the background's bias is set to let as
many pass on any pictures as a trained detector's does.
"""

import re
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from batchdet.demo.shipped import shipped_model
from batchdet.engine.ssd import run_network
from tests.engine.seeded import batch_of, eager_networks

ARCHITECTURE = "ssdlite320_mobilenet_v3_large"
CATEGORIES = ("__background__", *(f"category-{label:02d}" for label in range(1, 91)))
FLOOR = 0.05
CONFIDENT = 300
"""Scores above the floor per picture, on average, before NMS: what the classes have on drawn scenes left alone."""
HANDICAP = 8.0
"""How far below its original the logit of a multiplied class may lie."""
VARIATION = 0.2
"""Noise on a multiplied class's weights, in standard deviations of the original's."""


def save_stand_in(pictures: list[Tensor], path: Path) -> Path:
    """Fit the background to the pictures ([3, H, W] in [0, 1]) and write the weights as `.safetensors`."""
    (trained,) = shipped_model().glob("1/model.safetensors")
    weights = load_file(trained)
    for name in weights:
        if re.fullmatch(r"head\.classification_head\.module_list\.\d\.1\.weight", name):
            bias = name.replace("weight", "bias")
            weights[name], weights[bias] = _multiply(weights[name].float(), weights[bias].float())
    model = torchvision.models.get_model(
        ARCHITECTURE, weights=None, weights_backbone=None, num_classes=len(CATEGORIES)
    ).eval()
    model.load_state_dict(weights)
    _fit_background(model, pictures)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def _multiply(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A predicting layer [6 * K, D, 1, 1] of K classes as one of all CATEGORIES: each class repeats an original."""
    generator = torch.Generator().manual_seed(11)
    classes = bias.shape[0] // 6
    originals = torch.tensor([0, *((label - 1) % (classes - 1) + 1 for label in range(1, len(CATEGORIES)))])
    shaped, offsets = weight.view(6, classes, -1)[:, originals], bias.view(6, classes)[:, originals]
    copies = torch.arange(len(CATEGORIES)) >= classes
    noise = torch.randn(shaped.shape, generator=generator) * shaped.std(dim=2, keepdim=True) * VARIATION
    handicap = torch.rand(len(CATEGORIES), generator=generator) * HANDICAP
    shaped, offsets = shaped + noise * copies[:, None], offsets - handicap * copies
    return shaped.reshape(-1, *weight.shape[1:]), offsets.reshape(-1)


def _fit_background(model: nn.Module, pictures: list[Tensor]) -> None:
    """Move the background's bias until CONFIDENT scores a picture pass the floor."""
    networks = eager_networks(ARCHITECTURE, model)
    with torch.inference_mode():
        logits = torch.cat([run_network(model, networks, batch_of(model, [picture])).logits for picture in pictures])
    low, high = -20.0, 20.0
    while high - low > 0.01:
        bias = (low + high) / 2
        moved = torch.cat([logits[..., :1] + bias, logits[..., 1:]], dim=-1)
        passing = int((moved.softmax(-1)[..., 1:] > FLOOR).sum()) / len(pictures)
        low, high = (bias, high) if passing > CONFIDENT else (low, bias)
    for layer in model.head.classification_head.modules():  # type: ignore[union-attr]
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            layer.bias.data.view(-1, len(CATEGORIES))[:, 0] += high
