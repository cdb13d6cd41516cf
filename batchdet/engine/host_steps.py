"""`engine.steps` on the host: numpy's columns, which cost no dispatcher, and no work a batch does not need.

Boxes leave `boxes` as a transposed view of the sides x1, y1, x2, y2: numpy works fast along long rows only.
Shape shorthand: N entries of a batch, B images, R rows of logits, C classes with the background.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchdet.engine import host_nms
from batchdet.engine.candidates import Candidates, TopAnchors, any_per_image, logit_bound
from batchdet.engine.frames import Frame
from batchdet.engine.host_nms import Floats, Ints

WINDOW = 32
"""Numbers torch's reduction takes at a time."""
CHUNK_ROWS = 1 << 14
"""Rows of logits looked at together."""
FEW_NUMBERS = 100_000
"""Logits in wide rows up to which their softmax costs less than to look for the rows that need one."""
SAMPLED, SPARE = 16, 8
"""One value of so many is looked at to guess where the largest begin; how many times too many are taken at most."""


def all_finite(*outputs: Tensor) -> Tensor:
    """See `Steps.all_finite`."""
    if _make_finite_sums(outputs):
        return torch.from_numpy(np.ones(outputs[0].shape[0], dtype=np.bool_))
    verdicts = [output.flatten(1).abs().amax(dim=1) < math.inf for output in outputs]
    return torch.stack(verdicts).all(dim=0)


def _make_finite_sums(outputs: Sequence[Tensor]) -> bool:
    """True only where all numbers are finite: a sum of such may overflow, but no other number makes a finite sum."""
    return all(math.isfinite(output.sum()) for output in outputs)


def finite_images(rows_of: Tensor, num_images: int, *outputs: Tensor) -> Tensor:
    """See `Steps.finite_images`."""
    if _make_finite_sums(outputs):
        return torch.from_numpy(np.ones(num_images, dtype=np.bool_))
    return ~any_per_image(~all_finite(*outputs), rows_of, num_images)


def confident_entries(
    logits: Tensor, rows_of: Tensor | None, usable: Tensor, score_thresh: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Steps.confident_entries`."""
    table = logits.reshape(-1, logits.shape[-1])
    likely = None
    if table.shape[1] <= WINDOW or table.numel() > FEW_NUMBERS:
        likely = _likely_rows(table, logit_bound(score_thresh))
    if not all(usable.tolist()):
        likely = np.arange(table.shape[0]) if likely is None else likely
        image = likely // max(logits.shape[1], 1) if rows_of is None else rows_of.numpy().take(likely)
        likely = likely[usable.numpy().take(image)]
    scores = (table if likely is None else table.index_select(0, torch.from_numpy(likely))).softmax(dim=-1).numpy()
    passing = scores > np.float32(score_thresh)
    passing[:, 0] = False  # The background is never an entry.
    places = passing.reshape(-1).nonzero()[0]
    place = places // table.shape[1]
    rows, labels = place if likely is None else likely.take(place), places - place * table.shape[1]
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


def boxes(coder: Any, codes: Tensor, references: Tensor, image_index: Tensor, frames: Sequence[Frame]) -> Tensor:
    """See `Steps.boxes`: the arithmetic of `frames.decode_boxes` in its order; the exponential is torch's."""
    sides, steps = (np.array(table.numpy().T, order="C") for table in (references, codes))
    center, size, shift, half = sides[:2], sides[2:], steps[:2], steps[2:]
    with np.errstate(over="ignore", invalid="ignore"):  # Of outputs that are not finite, which give no detections.
        size -= center  # Which still is the upper left corner.
        center += np.float32(0.5) * size
        steps /= np.asarray(coder.weights, np.float32)[:, None]
        shift *= size
        shift += center
        np.minimum(half, np.float32(coder.bbox_xform_clip), out=half)
        torch.from_numpy(half).exp_()
        half *= size
        half *= np.float32(0.5)
        np.subtract(shift, half, out=sides[:2])
        np.add(shift, half, out=sides[2:])
        np.maximum(sides, np.float32(0), out=sides)
        limits = np.array([(width, height, width, height) for height, width in frames], np.float32).T
        np.minimum(sides, limits if len(frames) == 1 else limits.take(image_index.numpy(), axis=1), out=sides)
    return torch.from_numpy(sides.T)


def with_sides(found: Candidates, smallest: float, score_thresh: float) -> Candidates:
    """See `Steps.with_sides`."""
    sides = found.boxes.numpy().T
    sound = np.minimum(sides[2] - sides[0], sides[3] - sides[1]) >= np.float32(smallest)
    sound &= found.scores.numpy() >= np.float32(score_thresh)
    places = sound.nonzero()[0]
    if places.shape[0] == sound.shape[0]:
        return found
    columns = (found.scores, found.labels, found.image_index)
    taken = (torch.from_numpy(column.numpy().take(places)) for column in columns)
    return Candidates(torch.from_numpy(sides.take(places, axis=1).T), *taken)


def survivors(found: Candidates, num_images: int, iou_threshold: float, limit: int) -> tuple[Candidates, Tensor]:
    """See `Steps.survivors`."""
    if len(found) == 0:
        return found, torch.zeros(num_images, dtype=torch.bool)
    image = found.image_index.numpy()
    order = _best_first(image, found.scores.numpy())
    counts = np.bincount(image, minlength=num_images)
    sides = found.boxes.numpy().T.take(order, axis=1)
    scores, labels = found.scores.numpy().take(order), found.labels.numpy().take(order)
    keep = host_nms.batched_nms(sides, scores, labels, image, counts, iou_threshold).nonzero()[0]
    image = image.take(keep)
    counts = np.bincount(image, minlength=num_images)
    over = counts > limit
    if any(over.tolist()):
        leading = np.arange(image.shape[0]) - (np.cumsum(counts) - counts).take(image) < limit
        keep, image = keep[leading], image[leading]
    columns = (sides.T.take(keep, axis=0), scores.take(keep), labels.take(keep), image)
    return Candidates(*(torch.from_numpy(column) for column in columns)), torch.from_numpy(over)


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
        cell = best // kinds
        row = best - cell * kinds + kinds * np.arange(num_images)[:, None]  # Of a kind of an image.
        first = (row * (4 * cells) + cell)[:, :, None]
        four = level_codes.reshape(-1).numpy().take(first + np.arange(0, 4 * cells, cells))
        parts.append((best + offset, values.reshape(-1).take(row * cells + cell), four))
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
