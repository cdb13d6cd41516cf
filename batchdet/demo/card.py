"""Writes a model folder: fp16 weights and the card that explains them. Knows no training and no storage."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save
from torchvision.models.detection.ssd import SSD

from batchdet.config import PolicyConfig
from batchdet.demo.truth import TruthScore


def write_model_folder(
    folder: Path, model: SSD, categories: Sequence[str], score: TruthScore, lineage: Mapping[str, object]
) -> None:
    """Write `model.safetensors` and `model.json` for an ssdlite320; the card last, so that a card has its weights.

    Args:
        folder: made if absent; files there are replaced.
        model: floating weights are stored as fp16, whole numbers as they are.
        categories: names in label order, "__background__" first.
        score: measured on scenes the training never saw.
        lineage: what made the weights.
    """
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous().clone()
        for name, tensor in model.state_dict().items()
    }
    data = save(tensors)
    height, width = model.transform.fixed_size[1], model.transform.fixed_size[0]
    card = {
        "architecture": "ssdlite320_mobilenet_v3_large",
        "categories": list(categories),
        "input_size": {"height": height, "width": width},
        "normalisation": {"mean": list(model.transform.image_mean), "std": list(model.transform.image_std)},
        "score_floor": model.score_thresh,
        "policy": PolicyConfig().model_dump(mode="json"),
        "metrics": {
            "map": round(score.map, 4),
            "map_50": round(score.map_50, 4),
            "per_category": {name: round(value, 4) for name, value in score.per_category.items()},
            "num_images": score.num_images,
            "num_objects": score.num_objects,
        },
        "lineage": dict(lineage),
        "weights_dtype": "float16",
        "digests": {"model.safetensors": "sha256:" + hashlib.sha256(data).hexdigest()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(data)
    (folder / "model.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
