"""`engine.steps` on the host: numpy's columns, which cost no dispatcher, and no work a batch does not need.

Shape shorthand: N entries of a batch, B images, R rows of logits, C classes with the background.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from batchdet.engine import host_nms
from batchdet.engine.candidates import Candidates, TopAnchors, logit_bound
from batchdet.engine.host_nms import Floats, Ints

WINDOW = 32
"""Numbers torch's reduction takes at a time."""
CHUNK_ROWS = 4096
"""Rows of logits looked at together: they stay in a core's cache."""
SAMPLED, SPARE = 16, 8
"""One value of so many is looked at to guess where the largest begin; how many times too many are taken at most."""


def all_finite(*outputs: Tensor) -> Tensor:
    """See `Steps.all_finite`."""
    # A sum of finite numbers may overflow, but no other number makes a finite sum.
    if all(math.isfinite(output.sum()) for output in outputs):
        return torch.ones(outputs[0].shape[0], dtype=torch.bool)
    verdicts = [output.flatten(1).abs().amax(dim=1) < math.inf for output in outputs]
    return torch.stack(verdicts).all(dim=0)


def confident_entries(logits: Tensor, usable: Tensor, score_thresh: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `Steps.confident_entries`."""
    table = logits.reshape(-1, logits.shape[-1])
    likely = _likely_rows(table, logit_bound(score_thresh))
    sound = usable.numpy().reshape(-1).take(likely)
    if not sound.all():
        likely = likely[sound]
    scores = table.index_select(0, torch.from_numpy(likely)).softmax(dim=-1).numpy()
    passing = scores > np.float32(score_thresh)
    passing[:, 0] = False  # The background is never an entry.
    places = np.flatnonzero(passing)
    place = places // table.shape[1]
    rows, labels = likely.take(place), places - place * table.shape[1]
    return torch.from_numpy(rows), torch.from_numpy(labels), torch.from_numpy(scores.reshape(-1).take(places))


def _likely_rows(table: Tensor, bound: float) -> Ints:
    """Rows [R, C] with a category whose logit lies above the background's by more than the bound, and maybe others.

    A category's score is at most the sigmoid of that difference, so most rows need no softmax.
    """
    search = _wide_rows if table.shape[1] > WINDOW else _narrow_rows
    found = [np.zeros(0, dtype=np.int64)]
    for start in range(0, table.shape[0], CHUNK_ROWS):
        found.append(search(table[start : start + CHUNK_ROWS], bound) + start)
    return np.concatenate(found)


def _wide_rows(rows: Tensor, bound: float) -> Ints:
    # torch reduces rows of a multiple of 32 about four times as fast, so two windows that overlap cover the row.
    width = (rows.shape[1] - 1) // WINDOW * WINDOW
    largest = torch.maximum(rows[:, 1 : 1 + width].amax(dim=1), rows[:, -width:].amax(dim=1))
    return np.flatnonzero((largest.sub_(rows[:, 0]) > bound).numpy())


def _narrow_rows(rows: Tensor, bound: float) -> Ints:
    table = rows.numpy()
    with np.errstate(invalid="ignore"):  # Infinite logits, which give no entries.
        least = table[:, :1] + np.float32(bound)
        least -= np.abs(least) * np.float32(2**-22)  # Never above the sum without rounding.
    row: Ints = np.flatnonzero(table[:, 1:] > least) // (table.shape[1] - 1)
    return row[np.append(True, row[1:] != row[:-1])] if row.shape[0] else row


def beyond_limit(segments: Tensor, scores: Tensor, num_segments: int, limit: int) -> Tensor | None:
    """See `Steps.beyond_limit`."""
    lane = segments.numpy()
    counts = np.bincount(lane, minlength=num_segments)
    if counts.max(initial=0) <= limit:
        return None
    order = _best_first(lane, scores.numpy())
    ordered = lane.take(order)
    below = np.empty(order.shape[0], dtype=np.bool_)
    below[order] = np.arange(order.shape[0]) - (np.cumsum(counts) - counts).take(ordered) >= limit
    return torch.from_numpy(below)


def survivors(found: Candidates, num_images: int, iou_threshold: float, limit: int) -> tuple[Candidates, Tensor]:
    """See `Steps.survivors`."""
    over = torch.zeros(num_images, dtype=torch.bool)
    if len(found) == 0:
        return found, over
    image = found.image_index.numpy()
    order = _best_first(image, found.scores.numpy())
    counts = np.bincount(image, minlength=num_images)
    boxes, scores, labels = (column.numpy()[order] for column in (found.boxes, found.scores, found.labels))
    keep = host_nms.batched_nms(boxes, scores, labels, image, counts, iou_threshold).nonzero()[0]
    image = image.take(keep)
    counts = np.bincount(image, minlength=num_images)
    if counts.max() > limit:
        over = torch.from_numpy(counts > limit)
        leading = np.arange(image.shape[0]) - (np.cumsum(counts) - counts).take(image) < limit
        keep, image = keep[leading], image[leading]
    columns = (boxes[keep], scores.take(keep), labels.take(keep), image)
    return Candidates(*(torch.from_numpy(column) for column in columns)), over


def _best_first(lanes: Ints, scores: Floats) -> Ints:
    """[N] positions that sort entries by lane, then from the highest score; equal scores keep their order."""
    # The bit pattern of a float that is not negative grows with it, so one integer key holds both.
    key = (lanes << 32) - scores.view(np.int32)
    order = key.argsort()
    ordered = key.take(order)
    # Sorting that keeps the order of equals takes several times as long, and equals are rare.
    return key.argsort(kind="stable") if (ordered[1:] == ordered[:-1]).any() else order


def sweep_nms(boxes: Tensor, segments: Tensor, iou_threshold: float) -> Tensor:
    """See `Steps.sweep_nms`."""
    if boxes.shape[0] == 0:
        return torch.zeros(0, dtype=torch.bool)
    return torch.from_numpy(host_nms.sweep_nms(boxes.numpy(), segments.numpy(), iou_threshold))


def top_anchors(objectness: Sequence[Tensor], deltas: Sequence[Tensor], limit: int) -> TopAnchors:
    """See `Steps.top_anchors`."""
    parts, offset = [], 0
    for level, level_codes in zip(objectness, deltas, strict=True):
        num_images, kinds, cells = level.shape[0], level.shape[1], level.shape[2] * level.shape[3]
        values = level.reshape(num_images, kinds * cells).numpy()
        best = np.stack([_top(row, kinds, min(limit, kinds * cells)) for row in values])
        image, kind, cell = np.arange(num_images)[:, None], best % kinds, best // kinds
        grid = level_codes.reshape(num_images, kinds, 4, cells).numpy()
        parts.append((best + offset, values[image, kind * cells + cell], grid[image, kind, :, cell]))
        offset += kinds * cells
    anchors, logits, codes = (torch.from_numpy(np.concatenate(column, axis=1)) for column in zip(*parts, strict=True))
    return TopAnchors(anchors, logits, codes, tuple(part[0].shape[1] for part in parts))


def _top(values: Floats, kinds: int, count: int) -> Ints:
    """Positions (cell, kind) of the `count` largest of a level's values (kind, cell), from the largest."""
    size = values.shape[0]
    likely = _likely_top(values, count)
    cells = size // kinds
    place = likely % cells * kinds + likely // cells
    bits = (values.take(likely) + np.float32(0)).view(np.int32).astype(np.int64)  # -0 becomes 0.
    rising = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    # One key holds the value and the place among equals.
    return np.sort((-rising << 32) + place)[:count] & 0xFFFFFFFF


def _likely_top(values: Floats, count: int) -> Ints:
    """Positions of the `count` largest values, and maybe of others; of all where one is no number."""
    size = values.shape[0]
    if np.isnan(values.max()):
        return np.arange(size)
    sample = values[::SAMPLED]
    rank = 2 * count // SAMPLED + SAMPLED
    if rank < sample.shape[0] // 2:
        # Sorting out a few thousand numbers costs a tenth of sorting out all of them.
        likely = np.flatnonzero(values >= np.partition(sample, sample.shape[0] - rank)[sample.shape[0] - rank])
        if count <= likely.shape[0] <= SPARE * count:
            return likely
    return np.flatnonzero(values >= np.partition(values, size - count)[size - count])
