"""The network alone: torchvision's backbone and heads on one prepared picture, in one process a core, one thread each.

Run: python -m tests.benchmarks.forward WEIGHTS COUNT [--processes 2]
"""

import argparse
from multiprocessing import get_context

import torch
import torchvision
from safetensors.torch import load_file

from tests.benchmarks.stand_in import ARCHITECTURE, CATEGORIES


def run_forward(weights: str, count: int) -> None:
    """`count` pictures through the network, one by one."""
    torch.set_num_threads(1)
    model = torchvision.models.get_model(
        ARCHITECTURE, weights=None, weights_backbone=None, num_classes=len(CATEGORIES)
    ).eval()
    model.load_state_dict(load_file(weights))
    pixels = torch.rand(1, 3, 320, 320, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        for _ in range(count):
            model.head(list(model.backbone(pixels).values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("count", type=int)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    context = get_context("spawn")
    running = [
        context.Process(target=run_forward, args=(options.weights, options.count // options.processes))
        for _ in range(options.processes)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
    raise SystemExit(max(process.exitcode or 0 for process in running))


if __name__ == "__main__":
    main()
