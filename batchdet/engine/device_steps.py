"""`engine.steps` on any device: few launches and few waits for a batch of any size. Knows no model.

A wait is an operation whose result the host must read to go on: the length of `nonzero`, a number.
Shape shorthand: N entries of a batch, B images, R rows of logits, C classes with the background, L levels.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from batchdet.engine import device_nms
from batchdet.engine.anchors import CACHED_SHAPES
from batchdet.engine.candidates import Candidates, TopAnchors, any_per_image
from batchdet.engine.device_nms import sweep_nms as sweep_nms
from batchdet.engine.frames import Frame, clip_to_frames, decode_boxes


def all_finite(*outputs: Tensor) -> Tensor:
    """See `Steps.all_finite`."""
    # The largest magnitude carries NaN along.
    largest = [torch.linalg.vector_norm(output.flatten(1), math.inf, dim=1) for output in outputs]
    return (torch.stack(largest, dim=1) < math.inf).all(dim=1)


def finite_images(rows_of: Tensor, num_images: int, *outputs: Tensor) -> Tensor:
    """See `Steps.finite_images`."""
    return ~any_per_image(~all_finite(*outputs), rows_of, num_images)


def confident_entries(
    logits: Tensor, rows_of: Tensor | None, usable: Tensor, score_thresh: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Steps.confident_entries`."""
    scores = logits.softmax(dim=-1)
    categories = scores.shape[-1] - 1
    sound = usable[:, None] if rows_of is None else usable.index_select(0, rows_of)
    flat = ((scores[..., 1:] > score_thresh) & sound[..., None]).flatten().nonzero().squeeze(1)
    rows = flat // categories
    places = flat + rows + 1  # Counted with the background.
    return rows, places - rows * (categories + 1), scores.flatten().index_select(0, places)


def beyond_limit(segments: Tensor, scores: Tensor, num_segments: int, limit: int) -> Tensor | None:
    """See `Steps.beyond_limit`."""
    if segments.shape[0] <= limit:
        return None
    counts = segments.new_zeros(num_segments).index_add_(0, segments, torch.ones_like(segments))
    if int(counts.max()) <= limit:
        return None
    order = best_first(segments, scores)
    ordered = segments.index_select(0, order)
    rank = torch.arange(order.shape[0], device=order.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(rank, dtype=torch.bool).scatter_(0, order, rank >= limit)


def boxes(coder: Any, codes: Tensor, references: Tensor, image_index: Tensor, frames: Sequence[Frame]) -> Tensor:
    """See `Steps.boxes`."""
    return clip_to_frames(decode_boxes(coder, codes, references), image_index, frames)


def with_sides(found: Candidates, smallest: float, score_thresh: float) -> Candidates:
    """See `Steps.with_sides`."""
    wide = ((found.boxes[:, 2:] - found.boxes[:, :2]) >= smallest).all(dim=1)
    return found.select((wide & (found.scores >= score_thresh)).nonzero().squeeze(1))


def survivors(found: Candidates, num_images: int, iou_threshold: float, limit: int) -> tuple[Candidates, Tensor]:
    """See `Steps.survivors`."""
    if len(found) == 0:
        return found, torch.zeros(num_images, dtype=torch.bool, device=found.scores.device)
    order = best_first(found.image_index, found.scores)
    boxes, scores, labels = (column.index_select(0, order) for column in (found.boxes, found.scores, found.labels))
    images = found.image_index  # Sorting by image first leaves these as they are.
    bounds = torch.searchsorted(images, torch.arange(num_images + 1, device=images.device))
    keep = device_nms.batched_nms(boxes, labels, images, bounds, iou_threshold)
    # Kept entries before every place, and before the first of every image.
    before = torch.nn.functional.pad(keep.cumsum(0), (1, 0))
    edges = before.index_select(0, bounds)
    rank = before[1:] - edges.index_select(0, images)
    places = (keep & (rank <= limit)).nonzero().squeeze(1)
    left = Candidates(boxes, scores, labels, images).select(places)
    return left, edges[1:] - edges[:-1] > limit


def best_first(lanes: Tensor, scores: Tensor) -> Tensor:
    """[N] int64 positions that sort entries by lane, then from the highest score; equal scores keep their order."""
    # The bit pattern of a float that is not negative grows with it, so one integer key holds both.
    return torch.argsort((lanes << 32) - scores.view(torch.int32), stable=True)


def top_anchors(objectness: Sequence[Tensor], deltas: Sequence[Tensor], limit: int) -> TopAnchors:
    """See `Steps.top_anchors`."""
    shapes = tuple((level.shape[1], level.shape[2] * level.shape[3]) for level in objectness)
    anchor_at, place_of, codes_of = _memory_places(shapes, objectness[0].device)
    logits = torch.cat([level.flatten(1) for level in objectness], dim=1)
    bits = (logits + 0.0).view(torch.int32).to(torch.int64)  # -0 becomes 0.
    # The bit pattern of a float, that of a negative one turned round, grows with it; one key holds the anchor too.
    keys = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) - anchor_at
    levels = torch.split(keys, [kinds * cells for kinds, cells in shapes], dim=1)
    best = [level.topk(min(limit, level.shape[1]), dim=1).values for level in levels]
    anchors = -torch.cat(best, dim=1) & 0xFFFFFFFF
    codes = torch.cat([level.flatten(1) for level in deltas], dim=1)
    chosen = codes_of.index_select(0, anchors.flatten()).reshape(anchors.shape[0], -1)
    return TopAnchors(
        anchors,
        logits.gather(1, place_of[anchors]),
        codes.gather(1, chosen).reshape(*anchors.shape, 4),
        tuple(part.shape[1] for part in best),
    )


@lru_cache(CACHED_SHAPES)
def _memory_places(shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where the outputs of A anchors lie when each level's (kind, cell) is flattened and levels follow each other.

    Args:
        shapes: kinds and cells of every level.
        device: where the answers are used.

    Returns:
        The anchor (level, cell, kind) at every place [A]; the place of every anchor [A]; those of its codes [A, 4].
    """
    anchors, places, codes, offset = [], [], [], 0
    for kinds, cells in shapes:
        count = kinds * cells
        numbers = torch.arange(4 * count, device=device)
        anchors.append(numbers[:count].reshape(cells, kinds).t().flatten() + offset)
        places.append(numbers[:count].reshape(kinds, cells).t().flatten() + offset)
        codes.append(numbers.reshape(kinds, 4, cells).permute(2, 0, 1).reshape(-1, 4) + 4 * offset)
        offset += count
    return torch.cat(anchors), torch.cat(places), torch.cat(codes)
