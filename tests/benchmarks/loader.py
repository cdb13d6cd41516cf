"""What people write without a cluster: a DataLoader reads pictures, a stock model labels them, rows go to Parquet.

Run: python -m tests.benchmarks.loader IMAGES OUTPUT WEIGHTS [--score-threshold 0.05]
"""

import argparse
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_tensor

from tests.benchmarks.stand_in import ARCHITECTURE, CATEGORIES

BATCH_IMAGES = 16


class Pictures(Dataset[tuple[str, Tensor]]):
    """Every picture of a folder."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, place: int) -> tuple[str, Tensor]:
        path = self._paths[place]
        return str(path), to_tensor(Image.open(path).convert("RGB"))


def load_stock(weights: str | Path, **limits: float) -> nn.Module:
    """The stock model, ready to label."""
    model: nn.Module = torchvision.models.get_model(
        ARCHITECTURE, weights=None, weights_backbone=None, num_classes=len(CATEGORIES), **limits
    )
    model.load_state_dict(load_file(weights))
    return model.eval()


def to_rows(path: str, found: dict[str, Tensor]) -> list[dict[str, Any]]:
    """One row a detection."""
    columns = (found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist())
    return [
        {
            "path": path,
            "label": label,
            "category": CATEGORIES[label],
            "score": score,
            "xmin": box[0],
            "ymin": box[1],
            "xmax": box[2],
            "ymax": box[3],
        }
        for box, score, label in zip(*columns, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--score-threshold", type=float, help="set in the model; without it, the model's own 0.001")
    parser.add_argument("--cpus", type=int, default=2)
    options = parser.parse_args()
    limits = {} if options.score_threshold is None else {"score_thresh": options.score_threshold}
    torch.set_num_threads(options.cpus)
    model = load_stock(options.weights, **limits)
    loader = DataLoader(Pictures(options.images), BATCH_IMAGES, num_workers=options.cpus, collate_fn=list)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for batch in loader:
            found = model([pixels for _, pixels in batch])
            for (path, _), one in zip(batch, found, strict=True):
                rows += to_rows(path, one)
    options.output.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), options.output / "rows.parquet")


if __name__ == "__main__":
    main()
