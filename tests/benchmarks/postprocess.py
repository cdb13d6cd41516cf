"""Postprocessing against torchvision's on made head outputs: prints the ratio of CPU times, stock / ours.

Run from the repository root: `python -m tests.benchmarks.postprocess [--quick]`. Knows no network and no images.
Both sides get the same tensors in turn, on one thread; the median of process CPU time is compared.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from batchdet.engine import rcnn, ssd
from tests.benchmarks.report import print_results
from tests.engine.outputs import (
    region_outputs,
    roi_heads_without_network,
    rpn_outputs,
    rpn_without_network,
    ssd_outputs,
    ssd_without_network,
    stock_proposals,
)

Case = tuple[Callable[[], object], Callable[[], object], Sequence[Tensor]]
"""Stock, ours, and the outputs both are given."""
BATCHES = (1, 8, 32)
THRESHOLDS = (0.01, 0.05, 0.3)


def ssd_cases(kind: str, num_classes: int, background: float = 8.0) -> Iterator[tuple[str, int, Case]]:
    """Stock and ours from head outputs to detections, for every batch size and threshold."""
    model = ssd_without_network(kind, num_classes)
    sizes = [(model.transform.fixed_size[0],) * 2]
    for count in BATCHES:
        outputs = ssd_outputs(model, kind, count, num_classes, background)
        heads = {"bbox_regression": outputs.offsets, "cls_logits": outputs.logits}
        boxes = [outputs.default_boxes] * count
        for threshold in THRESHOLDS:
            model.score_thresh = threshold
            yield (
                f"{kind} {num_classes} classes, threshold {threshold}",
                count,
                (
                    lambda: model.postprocess_detections(heads, boxes, sizes * count),  # noqa: B023
                    lambda: ssd.postprocess(outputs, sizes * count, model),  # noqa: B023
                    (outputs.offsets, outputs.logits),
                ),
            )


def proposal_cases(kind: str, shape: tuple[int, int]) -> Iterator[tuple[str, int, Case]]:
    """Stock and ours from the proposal head's outputs to proposals."""
    rpn = rpn_without_network(kind)
    for count in (1, 4, 8):
        outputs = rpn_outputs(kind, count, shape)
        (anchors,) = rpn.anchor_generator(ImageList(outputs.images.tensors, [shape]), outputs.objectness)
        sizes = outputs.images.image_sizes
        yield (
            f"proposals {kind}",
            count,
            (
                lambda: stock_proposals(rpn, outputs),  # noqa: B023
                lambda: rcnn.propose_from(rpn, outputs.objectness, outputs.deltas, anchors, sizes),  # noqa: B023
                (*outputs.objectness, *outputs.deltas),
            ),
        )


def region_cases(per_image: int) -> Iterator[tuple[str, int, Case]]:
    """Stock and ours from the region head's outputs to detections."""
    heads = roi_heads_without_network()
    for count in BATCHES:
        logits, codes, proposals = region_outputs(per_image, count, 91, (800, 1088))
        boxes, sizes = list(proposals.boxes.split(per_image)), [(800, 1088)] * count
        for threshold in THRESHOLDS:
            heads.score_thresh = threshold
            yield (
                f"regions {per_image} an image, threshold {threshold}",
                count,
                (
                    lambda: heads.postprocess_detections(logits, codes, boxes, sizes),  # noqa: B023
                    lambda: rcnn.postprocess(heads, logits, codes, proposals, sizes),  # noqa: B023
                    (logits, codes),
                ),
            )


def compare(case: Case, rounds: int) -> tuple[float, float]:
    """Median CPU milliseconds of stock and of ours, taken in turn."""
    return _in_turn(case[:2], rounds)


def reading(case: Case, rounds: int) -> float:
    """Median CPU milliseconds of one sum over the outputs after stock."""
    stock, _, outputs = case
    return _in_turn((stock, lambda: [output.sum().item() for output in outputs]), rounds)[1]


def _in_turn(sides: tuple[Callable[[], object], Callable[[], object]], rounds: int) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for side, spent in zip(sides, times, strict=True):
            start = time.process_time()
            side()
            spent.append((time.process_time() - start) * 1e3)
    one, other = (median(spent[1:]) for spent in times)
    return one, other


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds a case instead of fifteen")
    rounds = 3 if parser.parse_args(argv).quick else 15
    torch.set_num_threads(1)
    cases = [
        ssd_cases("ssd300", 91),
        ssd_cases("ssdlite320", 91),
        ssd_cases("ssd300", 21),
        ssd_cases("ssdlite320", 5, 6.0),
        proposal_cases("resnet50", (800, 1088)),
        proposal_cases("mobilenet320", (320, 448)),
        region_cases(1000),
        region_cases(150),
    ]
    print("read: one sum over the outputs, without which none is known to be finite; at most: stock / read")
    print(f"{'case':44} {'batch':>5} {'stock ms/image':>15} {'ours':>8} {'ratio':>6} {'read':>8} {'at most':>8}")
    found: dict[tuple[str, int], float] = {}
    with torch.inference_mode():
        for family in cases:
            for name, count, case in family:
                (stock, ours), read = compare(case, rounds), reading(case, 3)
                found[name, count] = stock / ours
                times = f"{stock / count:15.2f} {ours / count:8.2f} {stock / ours:5.1f}×"
                print(f"{name:44} {count:5} {times} {read / count:8.3f} {stock / read:7.0f}×", flush=True)
    print_results(goals_of(found))


def goals_of(found: dict[tuple[str, int], float]) -> dict[str, float]:
    """The least ratio of the cases each goal is about; SSD's and the region heads' at thresholds of at least 0.05."""

    def least(begin: str, count: int | None = None) -> float:
        return min(
            ratio
            for (name, batch), ratio in found.items()
            if name.startswith(begin) and count in (None, batch) and "threshold 0.01" not in name
        )

    return {
        "ssd batch 1: stock / ours": min(least("ssd300 91", 1), least("ssdlite320 91", 1)),
        "ssd batch 32: stock / ours": min(least("ssd300 91", 32), least("ssdlite320 91", 32)),
        "rpn: stock / ours": least("proposals resnet50"),
        "roi: stock / ours": least("regions 1000"),
        "least: stock / ours": min(found.values()),
    }


if __name__ == "__main__":
    main()
