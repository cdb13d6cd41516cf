"""What people write today: Ray Data reads pictures, a stock torchvision model labels them, rows go to Parquet.

The shape of Ray's own object detection example, as a script: read_images → map_batches over actors → flat rows.

Run: python -m tests.benchmarks.recipe IMAGES OUTPUT WEIGHTS [--score-threshold 0.05]
"""

import argparse
from typing import Any

import numpy as np
import ray
import torch
import torchvision
from safetensors.torch import load_file

from tests.benchmarks.stand_in import ARCHITECTURE, CATEGORIES

BATCH_IMAGES = 16


class StockDetector:
    """The model in an actor."""

    def __init__(self, weights: str, limits: dict[str, float]) -> None:
        self._model = torchvision.models.get_model(
            ARCHITECTURE, weights=None, weights_backbone=None, num_classes=len(CATEGORIES), **limits
        )
        self._model.load_state_dict(load_file(weights))
        self._model.eval()

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[Any]]:
        """Every picture's boxes, scores and labels."""
        pictures = [torch.from_numpy(picture).permute(2, 0, 1).float() / 255 for picture in batch["image"]]
        with torch.inference_mode():
            found = self._model(pictures)
        return {
            "path": list(batch["path"]),
            "boxes": [one["boxes"].numpy() for one in found],
            "scores": [one["scores"].numpy() for one in found],
            "labels": [one["labels"].numpy() for one in found],
        }


def to_rows(image: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a detection."""
    return [
        {
            "path": image["path"],
            "label": int(label),
            "category": CATEGORIES[label],
            "score": float(score),
            "xmin": float(box[0]),
            "ymin": float(box[1]),
            "xmax": float(box[2]),
            "ymax": float(box[3]),
        }
        for box, score, label in zip(image["boxes"], image["scores"], image["labels"], strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("output")
    parser.add_argument("weights")
    parser.add_argument("--score-threshold", type=float, help="set in the model; without it, the model's own 0.001")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--cpus-per-actor", type=float, default=1)
    options = parser.parse_args()
    limits = {} if options.score_threshold is None else {"score_thresh": options.score_threshold}
    ray.init(address="local", num_cpus=options.cpus, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    found = ray.data.read_images(options.images, include_paths=True, mode="RGB").map_batches(
        StockDetector,
        fn_constructor_args=(options.weights, limits),
        batch_size=BATCH_IMAGES,
        num_cpus=options.cpus_per_actor,
        compute=ray.data.ActorPoolStrategy(size=options.actors),
    )
    found.flat_map(to_rows).write_parquet(options.output)


if __name__ == "__main__":
    main()
