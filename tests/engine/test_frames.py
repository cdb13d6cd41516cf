"""Boxes between frames, against torchvision image by image."""

from types import SimpleNamespace

import pytest
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.transform import resize_boxes

from batchdet.engine.candidates import Candidates
from batchdet.engine.frames import clip_to_frames, decode_boxes, rescale
from batchdet.engine.steps import DEVICE, HOST, Steps

SIZES = [(300, 300), (800, 1067), (320, 427)]
ORIGINALS = [(427, 640), (3000, 4001), (48, 64)]


def random_boxes() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.arange(3).repeat_interleave(50)
    corner = torch.rand(150, 2, generator=generator) * 1000 - 100
    return torch.cat([corner, corner + torch.rand(150, 2, generator=generator) * 400], dim=1), images


def test_clipping_equals_torchvisions() -> None:
    boxes, images = random_boxes()
    clipped = clip_to_frames(boxes, images, SIZES)
    for index, size in enumerate(SIZES):
        expected = torchvision.ops.clip_boxes_to_image(boxes[images == index], size)
        assert torch.equal(clipped[images == index], expected)


def test_rescaling_equals_torchvisions_inside_the_picture() -> None:
    boxes, images = random_boxes()
    boxes = clip_to_frames(boxes, images, SIZES)
    scaled = rescale(boxes, images, SIZES, ORIGINALS)
    for index, (size, original) in enumerate(zip(SIZES, ORIGINALS, strict=True)):
        expected = resize_boxes(boxes[images == index], size, original)
        assert torch.equal(scaled[images == index], torchvision.ops.clip_boxes_to_image(expected, original))
        torch.testing.assert_close(scaled[images == index], expected, rtol=0, atol=1e-3)


def test_no_box_leaves_the_picture_by_rounding() -> None:
    sizes = [(800, 800)] * 500
    originals = [(height, 2 * height + 1) for height in range(1, 501)]
    boxes = torch.tensor([[0.0, 0.0, 800.0, 800.0]]).repeat(500, 1)
    scaled = rescale(boxes, torch.arange(500), sizes, originals)
    assert (scaled[:, 2:] <= torch.tensor([(w, h) for h, w in originals])).all()


@pytest.mark.parametrize("weights", [(10.0, 10.0, 5.0, 5.0), (1.0, 1.0, 1.0, 1.0)])
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_decoding_is_bit_identical_to_torchvisions(weights: tuple[float, float, float, float], count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    references = torch.rand(count, 4, generator=generator) * 100
    references[:, 2:] += references[:, :2]
    codes = torch.randn(count, 4, generator=generator) * 10
    coder = BoxCoder(weights)
    holder = SimpleNamespace(weights=coder.weights, bbox_xform_clip=coder.bbox_xform_clip)
    assert torch.equal(decode_boxes(holder, codes, references), coder.decode_single(codes, references))


@pytest.mark.parametrize("steps", [HOST, DEVICE], ids=["host", "device"])
@pytest.mark.parametrize("frames", [SIZES[:1], SIZES], ids=["one", "three"])
@pytest.mark.parametrize("weights", [(10.0, 10.0, 5.0, 5.0), (1.0, 1.0, 1.0, 1.0)])
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_boxes_of_a_batch_are_torchvisions(
    steps: Steps, frames: list[tuple[int, int]], weights: tuple[float, float, float, float], count: int
) -> None:
    generator = torch.Generator().manual_seed(count)
    references = torch.rand(count, 4, generator=generator) * 500
    references[:, 2:] += references[:, :2]
    codes = torch.randn(count, 4, generator=generator) * 10
    images = torch.arange(count) * len(frames) // max(count, 1)
    coder = BoxCoder(weights)
    given = references.clone(), codes.clone()
    found = steps.boxes(coder, codes, references, images, frames)
    decoded = coder.decode_single(codes, references)
    for index, frame in enumerate(frames):
        expected = torchvision.ops.clip_boxes_to_image(decoded[images == index], frame)
        mine = found[images == index].contiguous()
        assert torch.equal(mine.view(torch.int32), expected.view(torch.int32))  # The sign of a zero too.
    assert torch.equal(references, given[0])
    assert torch.equal(codes, given[1])


@pytest.mark.parametrize("steps", [HOST, DEVICE], ids=["host", "device"])
def test_narrow_and_doubtful_boxes_go(steps: Steps) -> None:
    nan = float("nan")
    sides = [[0, 0, 2, 2], [0, 0, 1, 5], [0, 0, 5, 1], [0, 0, nan, 5], [0, 0, 5, 5], [1, 1, 5, 5], [0, 0, 5, 5]]
    scores = torch.tensor([0.5, 0.9, 0.9, 0.9, 0.4, 0.6, nan])
    found = Candidates(torch.tensor(sides), scores, torch.arange(7), torch.arange(7))
    left = steps.with_sides(found, 2.0, 0.5)
    assert left.labels.tolist() == left.image_index.tolist() == [0, 5]
    assert left.boxes.tolist() == [sides[0], sides[5]]
    assert torch.equal(left.scores, scores[[0, 5]])
    assert len(steps.with_sides(left, 2.0, 0.5)) == 2
