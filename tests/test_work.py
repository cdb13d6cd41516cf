"""What labelling costs, counted and not timed: forward passes, bytes copied, Python's work for a detection."""

import gc
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from batchdet.config import PlanConfig, PolicyConfig
from batchdet.engine.detections import Detections
from batchdet.engine.detector import Batch
from batchdet.engine.pipeline import detect_blocks
from batchdet.engine.postfilter import PostFilter
from batchdet.engine.staging import HostStager, Waiting
from batchdet.records import ImageFacts, ImageRef, InputSpec, ModelInfo, PreparedBlock, PreparedGroup
from batchdet.storage.filesystem import open_store
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import read_shard
from batchdet.storage.planning import make_plan
from tests.storage.made import NOON, header, listing, refs

INFO = ModelInfo(
    "fake", "fake", ("__background__", "a", "b"), "sha256:0", InputSpec((4, 4), 4, 4, 1, (0.0, 0.0, 0.0), (1, 1, 1))
)


class Prolific:
    """A detector with so many detections an image; counts its forward passes."""

    info = INFO
    device = torch.device("cpu")
    batch_images = 8

    def __init__(self, per_image: int) -> None:
        self.per_image = per_image
        self.forwards = 0

    def detect(self, batch: Batch) -> Detections:
        self.forwards += 1
        images, each = len(batch.sizes), self.per_image
        none = torch.zeros(images, dtype=torch.bool)
        return Detections(
            boxes=torch.tensor([1.0, 1.0, 3.0, 3.0]).repeat(images * each, 1),
            scores=torch.linspace(0.99, 0.1, each).repeat(images),
            labels=(torch.arange(images * each) % 2) + 1,
            image_index=torch.arange(images).repeat_interleave(each),
            capped=none,
            finite=~none,
        )


def a_block(refs: tuple[ImageRef, ...], side: int = 4) -> PreparedBlock:
    count = len(refs)
    sizes = np.full((count, 2), side)
    group = PreparedGroup(np.ones((count, 3, side, side), np.float32), np.arange(count), sizes, sizes)
    return PreparedBlock(refs, (ImageFacts(width=side, height=side),) * count, {}, (group,))


@pytest.mark.parametrize(("images", "block", "forwards"), [(64, 32, 8), (64, 5, 8), (65, 32, 9), (1, 1, 1), (0, 1, 0)])
def test_an_image_goes_through_the_network_once_in_full_batches(images: int, block: int, forwards: int) -> None:
    detector = Prolific(1)
    blocks = [a_block(refs(images)[start : start + block]) for start in range(0, images, block)]
    assert len(list(detect_blocks(blocks, detector, PostFilter(PolicyConfig(), INFO.categories)))) == images
    assert detector.forwards == forwards


class _Allocations(TorchDispatchMode):
    """Bytes of every tensor that torch makes, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.nbytes += made.nbytes if isinstance(made, torch.Tensor) and not func.is_view else 0
        return made


def bytes_staged(images: list[Waiting]) -> int:
    """Bytes that making a batch of the images takes; the batch holds their pixels."""
    tracemalloc.start()
    try:
        with _Allocations() as made:
            batch = HostStager(torch.device("cpu")).stage(images)().wait()
        _, peak = tracemalloc.get_traced_memory()  # numpy's buffers count, torch's do not
    finally:
        tracemalloc.stop()
    for pixels, image in zip(batch.pixels, images, strict=True):
        assert np.array_equal(pixels.numpy(), image.group.pixels[image.index])
    assert peak < batch.pixels.nbytes / 10
    return made.nbytes


def test_pixels_are_copied_at_most_once_on_their_way_into_a_batch() -> None:
    """Neighbours of a block not at all; those of several blocks, or of memory that must not be written, once."""
    side = 320
    blocks = [a_block(refs(4), side), a_block(refs(4), side)]
    for number, pixels in enumerate(pixels for block in blocks for pixels in block.groups[0].pixels):
        pixels[:] = number
    first, second = (
        [Waiting(place, ref, block.facts[place], block.groups[0], place) for place, ref in enumerate(block.refs)]
        for block in blocks
    )
    pixels = 4 * 3 * side * side * 4
    assert bytes_staged(first) == bytes_staged(first[1:3]) == 0
    assert bytes_staged(first + second) == 2 * pixels
    assert bytes_staged([first[0], first[2], first[1], first[3]]) == pixels
    blocks[0].groups[0].pixels.flags.writeable = False
    assert bytes_staged(first) == pixels


def count_work(work: Callable[[], object]) -> tuple[int, int]:
    """Calls of Python and C functions, and the most Python objects alive at once, counted at each call and return."""
    calls = most = 0

    def look(*_: object) -> None:
        nonlocal calls, most
        calls += 1
        most = max(most, sys.getallocatedblocks())

    gc.collect()
    gc.disable()
    before = sys.getallocatedblocks()
    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls, most - before


def test_python_does_nothing_for_each_detection(tmp_path: Path) -> None:
    """From the detector's columns to the committed files: as many calls, and hardly more objects, for fifty times as
    many detections.
    """
    output = open_store(str(tmp_path), {})
    plan = make_plan(output, header(), listing(refs(16)), iter(()), PlanConfig())
    shard, ledger = read_shard(output, plan, 0), Ledger(output, lambda: NOON)
    postfilter = PostFilter(PolicyConfig(), INFO.categories)

    def label(per_image: int) -> None:
        outcomes = list(detect_blocks([a_block(shard.images)], Prolific(per_image), postfilter))
        report = ledger.commit(plan, shard, outcomes)
        assert report.num_labelled == 16

    label(40)  # what is imported and cached on first use
    few_calls, few_objects = count_work(lambda: label(40))
    many_calls, many_objects = count_work(lambda: label(2000))
    assert few_calls > 100
    assert abs(many_calls - few_calls) <= 20
    assert many_objects - few_objects < 16 * (2000 - 40) / 50
