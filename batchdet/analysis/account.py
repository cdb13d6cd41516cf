"""The account of a comparison: blocks are added up, then told as one JSON document. Knows no files.

Shape shorthand: C categories, R changes of a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchdet.analysis.box_changes import ADDED, BOX_CHANGES, RECLASSED, BoxChanges
from batchdet.analysis.box_matching import Boxes
from batchdet.analysis.drift import SCORE_BINS, Scores, bin_of, describe_drift
from batchdet.analysis.states import IMAGE_CHANGES, Block, Standing
from batchdet.records import IntArray

_RELABELLED = IMAGE_CHANGES.index("relabelled")
_SAME = len(IMAGE_CHANGES)
"""Group of images labelled again though their bytes are the same; the other groups are the image changes."""

_GROUPS = _SAME + 1
_KINDS = len(BOX_CHANGES)


@dataclass(slots=True)
class ScoreCounts:
    """Scores by category, counted.

    Attributes:
        bins: [C, SCORE_BINS] int64.
        totals: [C] sums of scores.
    """

    bins: IntArray
    totals: npt.NDArray[np.float64]

    @classmethod
    def none(cls, num_categories: int) -> "ScoreCounts":
        """No score yet."""
        return cls(np.zeros((num_categories, SCORE_BINS), np.int64), np.zeros(num_categories))

    def add(self, boxes: Boxes, groups: IntArray, wanted: Sequence[int]) -> None:
        """Count the boxes of images of some groups; `groups` is by image."""
        counted = np.isin(groups, wanted)[boxes.owner]
        categories, scores = boxes.categories[counted], boxes.scores[counted]
        size = self.bins.size
        self.bins += np.bincount(categories * SCORE_BINS + bin_of(scores), minlength=size).reshape(self.bins.shape)
        self.totals += np.bincount(categories, weights=scores, minlength=len(self.totals))

    def add_rows(self, rows: pa.Table) -> None:
        """Count rows of category, bin, number and total of their scores."""
        category, place = (rows.column(name).to_numpy() for name in ("category", "bin"))
        np.add.at(self.bins, (category, place), rows.column("number").to_numpy())
        np.add.at(self.totals, category, rows.column("total").to_numpy())

    def of(self, category: int) -> Scores:
        """Those of one category."""
        return Scores(self.bins[category], float(self.totals[category]))

    def all(self) -> Scores:
        """Those of every category."""
        return Scores(self.bins.sum(axis=0), float(self.totals.sum()))


@dataclass(slots=True)
class Account:
    """What blocks add up to.

    Attributes:
        categories: names by number.
        images: [groups] images of each.
        sides: [groups, kinds, C] objects by their category before (added ones: after).
        gained: [groups, C] reclassed objects by their category after.
        before, after: scores on images labelled again.
        run_before: scores of the last run before, whatever images it labelled.
        run_after: scores of all that was labelled since.
    """

    categories: Sequence[str]
    images: IntArray = field(init=False)
    sides: IntArray = field(init=False)
    gained: IntArray = field(init=False)
    before: ScoreCounts = field(init=False)
    after: ScoreCounts = field(init=False)
    run_before: ScoreCounts = field(init=False)
    run_after: ScoreCounts = field(init=False)

    def __post_init__(self) -> None:
        size = len(self.categories)
        self.images = np.zeros(_GROUPS, np.int64)
        self.sides = np.zeros((_GROUPS, _KINDS, size), np.int64)
        self.gained = np.zeros((_GROUPS, size), np.int64)
        self.before, self.after, self.run_before, self.run_after = (ScoreCounts.none(size) for _ in range(4))

    def add(self, block: Block, changes: BoxChanges) -> None:
        """Count a block."""
        groups = np.where((block.changes == _RELABELLED) & block.same_content, _SAME, block.changes)
        self.images += np.bincount(groups, minlength=_GROUPS)
        size = len(self.categories)
        group = groups[changes.owner]
        category = np.zeros(len(changes.kind), np.int64)
        is_added = changes.kind == ADDED
        category[is_added] = block.after.categories[changes.after[is_added]]
        category[~is_added] = block.before.categories[changes.before[~is_added]]
        codes = (group * _KINDS + changes.kind) * size + category
        self.sides += np.bincount(codes, minlength=self.sides.size).reshape(self.sides.shape)
        turned = changes.kind == RECLASSED
        codes = group[turned] * size + block.after.categories[changes.after[turned]]
        self.gained += np.bincount(codes, minlength=self.gained.size).reshape(self.gained.shape)
        self.before.add(block.before, groups, (_RELABELLED, _SAME))
        self.after.add(block.after, groups, (_RELABELLED, _SAME))
        self.run_after.add(block.after, groups, range(_GROUPS))

    def tell(self, standing: Standing, added: Standing, run_images: int) -> dict[str, Any]:
        """The account as JSON has it; null where there is nothing to divide by.

        Args:
            standing: all that readers saw before.
            added: what the images that differ add to it.
            run_images: labelled images of the last run before.
        """
        images = self._images()
        relabelled = images["relabelled"]
        labelled = relabelled + images["new"] + images["recovered"]
        return {
            "state": _tell_state(standing, added),
            "images": images,
            "failures": _tell_failures(images),
            "deleted_fraction": _share(images["deleted"], standing.images),
            "changes": self._changes(range(_GROUPS)),
            "relabelled": {
                "images": relabelled,
                **self._changes((_RELABELLED, _SAME)),
                "counts": _tell_counts(self.before.all().number, relabelled, self.after.all().number, relabelled),
                "scores": describe_drift(self.before.all(), self.after.all()),
            },
            "same_content": {"images": images["same_content"], **self._changes((_SAME,))},
            "runs": {
                "counts": _tell_counts(self.run_before.all().number, run_images, self.run_after.all().number, labelled),
                "scores": describe_drift(self.run_before.all(), self.run_after.all()),
            },
            "categories": {name: self._category(code) for code, name in enumerate(self.categories) if self._has(code)},
        }

    def _images(self) -> dict[str, int]:
        number = dict(zip(IMAGE_CHANGES, self.images.tolist(), strict=False))
        same = int(self.images[_SAME])
        return {**number, "relabelled": number["relabelled"] + same, "same_content": same}

    def _changes(self, groups: Sequence[int]) -> dict[str, Any]:
        number = dict(zip(BOX_CHANGES, self.sides[list(groups)].sum(axis=(0, 2)).tolist(), strict=True))
        churned = number["added"] + number["removed"] + number["reclassed"]
        return {**number, "objects": sum(number.values()), "churn": _share(churned, sum(number.values()))}

    def _category(self, code: int) -> dict[str, Any]:
        """Changes of one category on images labelled again, and its scores; an object that changes counts in both."""
        kinds = self.sides[[_RELABELLED, _SAME], :, code].sum(axis=0)
        gained = int(self.gained[[_RELABELLED, _SAME], code].sum())
        number: dict[str, Any] = dict(zip(BOX_CHANGES, kinds.tolist(), strict=True))
        objects = sum(number.values()) + gained
        lost = number.pop("reclassed")
        churned = number["added"] + number["removed"] + lost + gained
        return {
            **number,
            "reclassed_from": lost,
            "reclassed_to": gained,
            "objects": objects,
            "churn": _share(churned, objects),
            "scores": describe_drift(self.before.of(code), self.after.of(code)),
            "runs": describe_drift(self.run_before.of(code), self.run_after.of(code)),
        }

    def _has(self, code: int) -> bool:
        everywhere = self.sides[:, :, code].sum() + self.gained[:, code].sum() + self.run_before.bins[code].sum()
        return bool(everywhere)


def _tell_state(standing: Standing, added: Standing) -> dict[str, Any]:
    after = Standing(
        standing.images + added.images, standing.failed + added.failed, standing.detections + added.detections
    )
    return {
        side: {**asdict(state), "failure_rate": _share(state.failed, state.images)}
        for side, state in (("before", standing), ("after", after))
    }


def _tell_failures(images: Mapping[str, int]) -> dict[str, Any]:
    """Images that had failed before are tried again; they are no news, whichever way they end."""
    failed = images["new_failed"] + images["newly_failed"]
    tried = failed + images["new"] + images["relabelled"]
    return {"tried": tried, "failed": failed, "failure_rate": _share(failed, tried)}


def _tell_counts(before: int, images_before: int, after: int, images_after: int) -> dict[str, Any]:
    mean_before, mean_after = _share(before, images_before), _share(after, images_after)
    return {
        "detections_before": before,
        "detections_after": after,
        "images_before": images_before,
        "images_after": images_after,
        "per_image_before": mean_before,
        "per_image_after": mean_after,
        "change": mean_after / mean_before - 1 if mean_before and mean_after is not None else None,
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
