"""From class logits to the best candidates of every image, without a loop over classes. Knows no architecture.

Shape shorthand: N entries of a batch, B images, R rows of logits, C classes with the background.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from batchdet.engine.detections import Detections

LOGIT_MARGIN = 1e-4
"""Slack of the filter on logits: float32 softmax and sigmoid differ by less."""


def all_finite(*outputs: Tensor) -> Tensor:
    """[M] bool: every number at that place is finite, in all of the tensors [M, ...]."""
    verdicts = []
    for output in outputs:
        inner = tuple(range(1, output.dim()))
        # Extremes carry NaN along, and are far cheaper than asking every number.
        verdicts.append((output.amin(dim=inner) > -math.inf) & (output.amax(dim=inner) < math.inf))
    return torch.stack(verdicts).all(dim=0)


def confident_entries(logits: Tensor, usable: Tensor, score_thresh: float) -> tuple[Tensor, Tensor]:
    """Entries whose softmax passes the threshold.

    Args:
        logits: [..., C].
        usable: [R] bool over the rows of the logits; others give no entries.
        score_thresh: in (0, 1).

    Returns:
        Positions in the flat logits [N], ascending, and scores [N].
    """
    num_classes = logits.shape[-1]
    rows = logits.reshape(-1, num_classes)
    # A class's score is at most sigmoid(its logit - the background's), so most rows need no softmax.
    margin = _row_max(rows[:, 1:]) - rows[:, 0]
    confident = margin > math.log(score_thresh / (1 - score_thresh)) - LOGIT_MARGIN
    likely = (confident & usable).nonzero().squeeze(1)
    scores = rows.index_select(0, likely).softmax(dim=-1)
    scores[:, 0] = 0  # The background is never an entry.
    passing = (scores > score_thresh).flatten().nonzero().squeeze(1)
    row = passing // num_classes
    return passing + (likely.index_select(0, row) - row) * num_classes, scores.flatten().index_select(0, passing)


def _row_max(rows: Tensor) -> Tensor:
    """Largest value of every row of a [R, C] tensor."""
    width = rows.shape[1] // 32 * 32
    if rows.device.type != "cpu" or width in (0, rows.shape[1]):
        return rows.amax(dim=1)
    # torch reduces rows of a multiple of 32 about four times as fast, so two windows that overlap cover the row.
    return torch.maximum(rows[:, :width].amax(dim=1), rows[:, -width:].amax(dim=1))


def keep_best(found: Detections, limit: int) -> Detections:
    """The `limit` highest scores of every image, of detections sorted by `best_first`; flags images that lost any."""
    if len(found) <= limit:
        return found
    below = rank_in_segment(found.image_index) >= limit
    capped = found.capped | any_per_image(below, found.image_index, found.capped.shape[0])
    return replace(found.select(~below), capped=capped)


def best_first(image_index: Tensor, scores: Tensor) -> Tensor:
    """Positions that sort entries by image, then from the highest score; equal scores keep their order.

    Args:
        image_index: [N] int64, under 2**31.
        scores: [N] float32, not negative.

    Returns:
        [N] int64.
    """
    # The bit pattern of a float that is not negative grows with it, so one integer key holds both.
    return torch.argsort((image_index << 32) - scores.view(torch.int32), stable=True)


def rank_in_segment(segments: Tensor) -> Tensor:
    """Place of every entry among those of its segment, from 0, in the order given.

    Args:
        segments: [N] int64, in any order.

    Returns:
        [N] int64.
    """
    ordered, order = torch.sort(segments, stable=True)
    places = torch.arange(segments.shape[0], device=segments.device)
    return torch.empty_like(order).scatter_(0, order, places - torch.searchsorted(ordered, ordered))


def any_per_image(flags: Tensor, image_index: Tensor, num_images: int) -> Tensor:
    """Whether an image has a raised flag: bool [N] flags at int64 [N] images to bool [B]."""
    counts = torch.zeros(num_images, dtype=torch.int64, device=flags.device)
    return counts.index_add_(0, image_index, flags.to(torch.int64)) > 0
