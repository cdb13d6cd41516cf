"""One outcome an image, in order, whatever the block size; batches by shape; out of memory halves."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from batchdet.config import PolicyConfig
from batchdet.engine import pipeline
from batchdet.engine.detections import Detections
from batchdet.engine.detector import Batch
from batchdet.engine.pipeline import SafeBatches, detect_blocks
from batchdet.engine.postfilter import PostFilter
from batchdet.engine.staging import HostStager, Staged, Waiting
from batchdet.errors import OutOfMemoryError
from batchdet.records import (
    FailedImage,
    ImageFacts,
    ImageOutcome,
    ImageRef,
    InputSpec,
    LabelledImage,
    ModelInfo,
    PreparedBlock,
    PreparedGroup,
    Span,
)
from batchdet.timeline import STAGES, Timeline

SPEC = InputSpec(None, 8, 16, 1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
INFO = ModelInfo("fake", "fake", ("__background__", "spot"), "sha256:0", SPEC)
SHAPES = ((2, 3), (3, 2), (4, 4))


class MeanDetector:
    """One detection an image whose score is its first pixel and whose box is its original size.

    The box is widened by the batch's padding, so a wrong batch-mate would show. An image of a score over 1 is one the
    network gave numbers that are not finite for.
    """

    info = INFO
    device = torch.device("cpu")

    def __init__(self, batch_images: int = 4, fits: int | None = None) -> None:
        self.batch_images = batch_images
        self.fits = fits
        self.asked: list[tuple[int, ...]] = []
        self.batches: list[tuple[int, ...]] = []

    def detect(self, batch: Batch) -> Detections:
        count = len(batch.sizes)
        self.asked.append(tuple(batch.pixels.shape))
        if self.fits is not None and count > self.fits:
            raise OutOfMemoryError(f"{count} images")
        self.batches.append(tuple(batch.pixels.shape))
        boxes = torch.tensor([[0.0, 0.0, width, height] for height, width in batch.original_sizes])
        boxes = boxes.reshape(count, 4)
        boxes[:, 2] += batch.pixels.shape[3] / 100
        scores = batch.pixels[:, 0, 0, 0].clone()
        labels, none = torch.ones(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
        found = Detections(boxes, scores, labels, torch.arange(count), none, scores <= 1)
        return found.select(found.finite)


def a_ref(place: int) -> ImageRef:
    return ImageRef(f"memory://{place:05d}.jpg")


def blocks_of(kinds: list[int | None], block_images: int, scores: list[float] | None = None) -> list[PreparedBlock]:
    """Blocks over images given as a position in SHAPES, or None for one that failed."""
    scores = scores if scores is not None else [(place % 97 + 1) / 100 for place in range(len(kinds))]
    blocks = []
    for start in range(0, len(kinds), block_images):
        part = kinds[start : start + block_images]
        refs = tuple(a_ref(start + offset) for offset in range(len(part)))
        failed = {
            at: FailedImage(refs[at], "decode", "corrupt", "made") for at, kind in enumerate(part) if kind is None
        }
        groups = []
        for kind in dict.fromkeys(kind for kind in part if kind is not None):
            positions = [at for at, other in enumerate(part) if other == kind]
            height, width = SHAPES[kind]
            pixels = np.zeros((len(positions), 3, height, width), np.float32)
            for row, at in enumerate(positions):
                pixels[row, 0, 0, 0] = scores[start + at]
            pixels.flags.writeable = False
            sizes = np.tile(np.array([height, width]), (len(positions), 1))
            groups.append(PreparedGroup(pixels, np.array(positions), sizes, sizes * 10))
        facts = tuple(ImageFacts(width=start + at) for at in range(len(part)))
        spans = (Span("read", "host:1", 1, "reader", 0, 10**9), Span("decode", "host:1", 1, "reader", 0, 2 * 10**9))
        blocks.append(PreparedBlock(refs, facts, failed, tuple(groups), spans))
    return blocks


def run(blocks: list[PreparedBlock], detector: MeanDetector, policy: PolicyConfig | None = None) -> list[ImageOutcome]:
    postfilter = PostFilter(policy or PolicyConfig(), INFO.categories)
    return list(detect_blocks(blocks, detector, postfilter))


def rows(outcomes: list[ImageOutcome]) -> list[tuple[object, ...]]:
    return [
        (o.ref.uri, o.boxes.tolist(), o.scores.tolist(), o.labels.tolist(), o.accepted.tolist(), o.facts)
        if isinstance(o, LabelledImage)
        else (o.ref.uri, o.stage, o.code)
        for o in outcomes
    ]


kinds_lists = st.lists(st.one_of(st.none(), st.integers(0, len(SHAPES) - 1)), max_size=60)


@given(kinds_lists, st.sampled_from([1, 3, 32]), st.integers(1, 9))
def test_every_image_has_one_outcome_in_plan_order(kinds: list[int | None], block: int, batch: int) -> None:
    outcomes = run(blocks_of(kinds, block), MeanDetector(batch))
    assert [outcome.ref for outcome in outcomes] == [a_ref(place) for place in range(len(kinds))]
    for kind, outcome in zip(kinds, outcomes, strict=True):
        if kind is None:
            assert isinstance(outcome, FailedImage)
        else:
            assert isinstance(outcome, LabelledImage)
            height, width = SHAPES[kind]
            expected = np.array([[0, 0, width * 10 + width / 100, height * 10]], np.float32)
            np.testing.assert_array_equal(outcome.boxes, expected)


@given(kinds_lists, st.integers(1, 9))
def test_block_borders_change_neither_rows_nor_batches(kinds: list[int | None], batch: int) -> None:
    seen = []
    for block in (1, 3, 32):
        detector = MeanDetector(batch)
        seen.append((rows(run(blocks_of(kinds, block), detector)), detector.batches))
    assert seen[0] == seen[1] == seen[2]


@given(kinds_lists, st.integers(1, 9), st.integers(1, 9))
def test_out_of_memory_loses_no_image(kinds: list[int | None], batch: int, fits: int) -> None:
    whole = run(blocks_of(kinds, 7), MeanDetector(batch))
    detector = MeanDetector(batch, fits=fits)
    assert rows(run(blocks_of(kinds, 7), detector)) == rows(whole)
    assert all(shape[0] <= fits for shape in detector.batches)


def test_a_batch_that_fits_is_remembered_for_its_shape(caplog: pytest.LogCaptureFixture) -> None:
    detector = MeanDetector(8, fits=3)
    run(blocks_of([0] * 24, 8), detector)
    # 8, 4 refused once; then 2 at a time.
    assert [shape[0] for shape in detector.batches] == [2] * 12
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "out of memory with 8 images of 3 x 2",
        "out of memory with 4 images of 3 x 2",
    ]


def test_a_batch_that_fits_is_remembered_in_later_shards_of_the_labeller() -> None:
    detector, postfilter, safe = MeanDetector(8, fits=3), PostFilter(PolicyConfig(), INFO.categories), SafeBatches()
    for _ in range(2):
        list(detect_blocks(blocks_of([0] * 8, 8), detector, postfilter, safe=safe))
    assert [count for count, *_ in detector.asked] == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert safe.images == {SHAPES[0]: 2}
    list(detect_blocks(blocks_of([1] * 3, 8), detector, postfilter, safe=safe))
    assert detector.batches[-1][0] == 3, "another shape is not held back"


def test_want_of_memory_before_the_forward_pass_fails_the_image_alone() -> None:
    """A real refusal: no allocator has room for this picture's batch, which is made outside the detector."""
    (block,) = blocks_of([0, 1, 0], 3)
    size = np.array([[1 << 24, 1 << 24]])
    giant = PreparedGroup(np.broadcast_to(np.float32(0), (1, 3, 1 << 24, 1 << 24)), np.array([1]), size, size)
    groups = tuple(giant if 1 in group.positions else group for group in block.groups)
    outcomes = run([dataclasses.replace(block, groups=groups)], MeanDetector())
    assert [getattr(o, "code", "labelled") for o in outcomes] == ["labelled", "out_of_memory", "labelled"]


def test_an_image_too_large_alone_fails_and_the_rest_goes_on() -> None:
    class TallRefuser(MeanDetector):
        def detect(self, batch: Batch) -> Detections:
            if batch.pixels.shape[2] == 4:
                raise OutOfMemoryError("no room")
            return super().detect(batch)

    outcomes = run(blocks_of([0, 2, 2, 1], 4), TallRefuser())
    assert [getattr(o, "code", "labelled") for o in outcomes] == [
        "labelled",
        "out_of_memory",
        "out_of_memory",
        "labelled",
    ]
    assert all(o.stage == "detect" for o in outcomes if isinstance(o, FailedImage))


def test_an_image_the_network_failed_on_fails_alone() -> None:
    outcomes = run(blocks_of([0, 0, 0], 3, scores=[0.9, 2.0, 0.8]), MeanDetector())
    assert [getattr(o, "code", "labelled") for o in outcomes] == ["labelled", "non_finite", "labelled"]
    assert [len(o.scores) for o in outcomes if isinstance(o, LabelledImage)] == [1, 1]


def test_what_waits_is_bounded_and_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_WAITING_BATCHES", 1)
    detector = MeanDetector(4)
    outcomes = run(blocks_of([2, 0, 0, 1, 1, 0], 2), detector)
    assert [outcome.ref for outcome in outcomes] == [a_ref(place) for place in range(6)]
    # The fifth image is one too many: shape 2, which waits longest, goes alone.
    assert [shape[0] for shape in detector.batches] == [1, 3, 2]


def test_stage_seconds_add_up_over_blocks() -> None:
    timeline = Timeline(keeps_spans=True)
    list(detect_blocks(blocks_of([0] * 6, 2), MeanDetector(), PostFilter(PolicyConfig(), INFO.categories), timeline))
    assert (timeline.seconds["read"], timeline.seconds["decode"]) == (3.0, 6.0)
    images = {stage: [span.images for span in timeline.spans if span.stage == stage] for stage in STAGES}
    assert images["detect"] == images["copy"] == images["forward"] == images["post_filter"] == [4, 2]
    assert len(images["idle"]) == 4, "a wait for each block, and one for the end"


def test_parts_of_a_detection_lie_inside_it() -> None:
    timeline = Timeline(keeps_spans=True)
    list(detect_blocks(blocks_of([0] * 4, 4), MeanDetector(), PostFilter(PolicyConfig(), INFO.categories), timeline))
    spans = {span.stage: span for span in timeline.spans}
    whole, parts = spans["detect"], [spans[stage] for stage in ("copy", "forward", "post_filter")]
    assert whole.begin_ns <= parts[0].begin_ns
    assert all(one.end_ns <= other.begin_ns for one, other in pairwise(parts))
    assert parts[-1].end_ns <= whole.end_ns


class _AheadStager:
    """What a GPU's does, without one: a batch is made before the one ahead of it is detected."""

    ahead = 1

    def __init__(self) -> None:
        self.staged: list[int] = []
        self._inner = HostStager(torch.device("cpu"))

    def stage(self, images: Sequence[Waiting]) -> Callable[[], Staged]:
        self.staged.append(len(images))
        staged = self._inner.stage(images)()
        return lambda: staged


@given(kinds_lists, st.integers(1, 9), st.integers(1, 9))
def test_staging_ahead_changes_no_row_whatever_fits(kinds: list[int | None], batch: int, fits: int) -> None:
    expected = rows(run(blocks_of(kinds, 7), MeanDetector(batch)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "open_stager", lambda *_, **__: nullcontext(_AheadStager()))
        detector = MeanDetector(batch, fits=fits)
        assert rows(run(blocks_of(kinds, 7), detector)) == expected
    assert all(shape[0] <= fits for shape in detector.batches)


def test_a_refusal_is_not_forgotten_for_what_was_staged_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "open_stager", lambda *_, **__: nullcontext(_AheadStager()))
    detector = MeanDetector(8, fits=2)
    run(blocks_of([0] * 32, 8), detector)
    assert [count for count, *_ in detector.asked] == [8, 4, *[2] * 16]


@pytest.mark.gpu
def test_batches_staged_on_a_stream_of_their_own_arrive_whole() -> None:
    class OnGpu(MeanDetector):
        device = torch.device("cuda")

        def detect(self, batch: Batch) -> Detections:
            assert batch.pixels.is_cuda
            return super().detect(Batch(batch.pixels.cpu(), batch.sizes, batch.original_sizes))

    kinds: list[int | None] = [place % 3 for place in range(200)]
    assert rows(run(blocks_of(kinds, 7), OnGpu())) == rows(run(blocks_of(kinds, 7), MeanDetector()))
