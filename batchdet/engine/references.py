"""The torchvision detectors that can be named as a model. Knows their weights' papers, loads none."""

from dataclasses import dataclass

from torchvision.models import get_model_weights

from batchdet.engine.families import FAMILIES


@dataclass(frozen=True, slots=True)
class ReferenceModel:
    """Weights that torchvision publishes.

    Attributes:
        reference: what `--model` takes.
        box_map: COCO mAP of boxes on val2017 as torchvision states it, a fraction; None where it states none.
        megabytes: size of the download.
        num_categories: without the background.
    """

    reference: str
    is_default: bool
    box_map: float | None
    num_parameters: int
    megabytes: float
    num_categories: int


def list_references() -> list[ReferenceModel]:
    """Every reference `torchvision:NAME@WEIGHTS` that can be loaded."""
    found = []
    for name in FAMILIES:
        choices = get_model_weights(name)
        for weights in choices:
            meta = weights.meta
            percent = meta.get("_metrics", {}).get("COCO-val2017", {}).get("box_map")
            found.append(
                ReferenceModel(
                    reference=f"torchvision:{name}@{weights.name}",
                    is_default=weights == choices["DEFAULT"],
                    box_map=None if percent is None else round(percent / 100, 4),
                    num_parameters=int(meta["num_params"]),
                    megabytes=float(meta["_file_size"]),
                    num_categories=sum(category not in ("__background__", "N/A") for category in meta["categories"]),
                )
            )
    return found
