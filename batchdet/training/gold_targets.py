"""Gold labels as a student learns them, and how many there are. Knows no pixels and no bands."""

from collections.abc import Sequence

import numpy as np
import torch

from batchdet.training.gold import Gold, share_categories
from batchdet.training.pseudo_labels import BoxCounts
from batchdet.training.targets import Target, gold_target


def gold_targets(gold: Gold, categories: Sequence[str]) -> list[Target]:
    """The target of every gold image, in the order of `gold.names`.

    Crowds are ignored, whatever their category. Objects of categories the student does not have are background to it.

    Args:
        gold: the labels.
        categories: the student's, in label order.

    Raises:
        ConfigError: they have no category in common.
    """
    share_categories(gold, categories)
    label_of = np.array([categories.index(name) if name in categories[1:] else 0 for name in gold.categories], np.int64)
    labels, boxes = label_of[gold.labels], gold.boxes.astype(np.float32)
    is_object, order = ~gold.crowd & (labels > 0), np.argsort(gold.images, kind="stable")
    ends = np.cumsum(np.bincount(gold.images, minlength=len(gold.names)))
    targets = []
    for own in np.split(order, ends[:-1]) if len(gold.names) else []:
        objects, crowds = own[is_object[own]], own[gold.crowd[own]]
        columns = [torch.from_numpy(column) for column in (boxes[objects], labels[objects], boxes[crowds])]
        targets.append(gold_target(columns[0], columns[1], columns[2]))
    return targets


def count_gold(gold: Gold) -> BoxCounts:
    """Objects by category, crowds not counted: what the guard compares pseudo-labels with."""
    counts = np.bincount(gold.labels[~gold.crowd], minlength=len(gold.categories)).tolist()
    return BoxCounts(len(gold.names), dict(zip(gold.categories, counts, strict=True)))
