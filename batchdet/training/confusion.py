"""Which gold category is taken for which: accepted detections matched whatever their category. Knows no files.

Shape shorthand: C categories.
"""

import contextlib
import csv
import io
from dataclasses import dataclass

import numpy as np

from batchdet.records import IntArray
from batchdet.training.evaluation import Found, coco_of_found, coco_of_gold, require_pycocotools
from batchdet.training.gold import Gold

NOTHING = "(nothing)"
"""What a detection without a gold object, or an object without a detection, is paired with."""

_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class Confusion:
    """Pairs of gold object and detection at IoU 0.50.

    Attributes:
        categories: C names.
        counts: [C + 1, C + 1] rows: the gold object's category, columns: the detection's; the last of each is nothing.
    """

    categories: tuple[str, ...]
    counts: IntArray

    def to_csv(self) -> str:
        """A table with a header, one line per gold category and one for detections of nothing."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [*self.categories, NOTHING]
        writer.writerow(["gold \\ detected", *names])
        writer.writerows([name, *row] for name, row in zip(names, self.counts.tolist(), strict=True))
        return text.getvalue()


def count_confusion(gold: Gold, found: Found) -> Confusion:
    """Pair the accepted detections of each image with its gold objects, best score first, and count the pairs.

    Detections on crowds, and crowds, are left out.

    Raises:
        ConfigError: pycocotools is not installed.
    """
    require_pycocotools()
    from pycocotools.cocoeval import COCOeval

    accepted = found.select(found.accepted)
    with contextlib.redirect_stdout(io.StringIO()):
        judged = COCOeval(coco_of_gold(gold), coco_of_found(gold, accepted), "bbox")
        judged.params.useCats = 0
        judged.params.iouThrs = np.array([0.5])
        judged.params.maxDets = [_MOST]
        judged.params.areaRng, judged.params.areaRngLbl = judged.params.areaRng[:1], judged.params.areaRngLbl[:1]
        judged.evaluate()
    last = len(gold.categories)
    counts = np.zeros((last + 1, last + 1), np.int64)
    for part in filter(None, judged.evalImgs):
        for found_id, gold_id, ignored in zip(part["dtIds"], part["dtMatches"][0], part["dtIgnore"][0], strict=True):
            if not ignored:
                row = int(gold.labels[int(gold_id) - 1]) if gold_id else last
                counts[row, accepted.labels[found_id - 1]] += 1
        for gold_id, found_id, ignored in zip(part["gtIds"], part["gtMatches"][0], part["gtIgnore"], strict=True):
            if not ignored and not found_id:
                counts[gold.labels[gold_id - 1], last] += 1
    return Confusion(gold.categories, counts)
