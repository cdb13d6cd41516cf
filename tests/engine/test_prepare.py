"""Blocks of prepared images equal torchvision's own transform, whatever the sizes."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from batchdet.engine.decode import FULL_SCALE, TURNS, DecodedImage, Turn, decode
from batchdet.engine.prepare import GroupBuilder, prepare_block
from batchdet.engine.resize import output_size, padded_size, resize_normalised
from batchdet.engine.scale import full_scale, reduced_scale
from batchdet.records import EncodedImage, FailedImage, FloatArray, ImageFacts, ImageRef, InputSpec, PixelArray

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SSD = InputSpec((300, 300), 300, 300, 1, (0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255))
SSDLITE = InputSpec((320, 320), 320, 320, 1, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OBLONG = InputSpec((240, 416), 240, 416, 1, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RCNN = InputSpec(None, 800, 1333, 32, MEAN, STD)
RCNN_320 = InputSpec(None, 320, 640, 32, MEAN, STD)
SMALL_RCNN = InputSpec(None, 37, 61, 8, MEAN, STD)
NO_LIMIT = 1 << 40


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # torch resizes with other roundings on one thread than on several; see batchdet.engine.resize.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stock(spec: InputSpec) -> GeneralizedRCNNTransform:
    # torchvision's fixed_size is (width, height).
    fixed = None if spec.fixed_size is None else spec.fixed_size[::-1]
    transform = GeneralizedRCNNTransform(
        spec.min_size,
        spec.max_size,
        list(spec.mean),
        list(spec.std),
        size_divisible=spec.size_divisible,
        fixed_size=fixed,
    )
    return transform.eval()


def stock_input(pixels: PixelArray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255


def stock_batch(pixels: PixelArray, spec: InputSpec) -> tuple[FloatArray, tuple[int, int]]:
    images, _ = stock(spec)([stock_input(pixels)])
    return images.tensors[0].numpy(), images.image_sizes[0]


def noise(height: int, width: int, seed: int = 0) -> PixelArray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: PixelArray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def as_decoded(pixels: PixelArray, turn: Turn | None = None) -> DecodedImage:
    """The upright `pixels` as a file that must be turned has them, with noise in the fourth byte."""
    turn = turn or Turn()
    stored = pixels.transpose(1, 0, 2) if turn.swaps_sides else pixels
    stored = stored[:: -1 if turn.mirrors_rows else 1, :: -1 if turn.mirrors_columns else 1]
    fourth = noise(*stored.shape[:2], seed=99)[:, :, :1]
    height, width = pixels.shape[:2]
    return DecodedImage(np.concatenate([stored, fourth], axis=2), FULL_SCALE, turn, width, height, None, "made")


def encoded(name: str, data: bytes) -> EncodedImage:
    return EncodedImage(ImageRef(f"memory://{name}"), data)


def tolerance(spec: InputSpec) -> float:
    # 1e-6 where std is near 0.25 (values up to 2.6); SSD's std of 1/255 makes values 58 times as large.
    return 1e-6 * max(1.0, 0.225 / min(spec.std))


@pytest.mark.parametrize(
    ("height", "width", "spec"),
    [
        pytest.param(480, 640, SSDLITE, id="shrink"),
        pytest.param(480, 640, SSD, id="std 1/255"),
        pytest.param(480, 640, OBLONG, id="height and width not mixed up"),
        pytest.param(480, 640, RCNN, id="grow"),
        pytest.param(1080, 1920, RCNN, id="longer side limits"),
        pytest.param(1080, 1920, SSDLITE, id="shrink a lot"),
        pytest.param(2000, 3000, SSDLITE, id="rows far apart"),
        pytest.param(1333, 1777, RCNN, id="odd ratio"),
        pytest.param(320, 320, SSDLITE, id="same size"),
        pytest.param(1, 1, SSDLITE, id="one pixel"),
        pytest.param(1, 1, RCNN, id="one pixel, square"),
        pytest.param(2, 3, RCNN, id="a few pixels"),
        pytest.param(1, 500, RCNN_320, id="one row"),
        pytest.param(500, 1, SSD, id="one column"),
        pytest.param(7, 4000, SSDLITE, id="panorama"),
    ],
)
def test_pixels_equal_torchvision(height: int, width: int, spec: InputSpec) -> None:
    pixels = noise(height, width)
    expected, size = stock_batch(pixels, spec)
    block = prepare_block([encoded("a.png", png(pixels))], spec, NO_LIMIT)
    (group,) = block.groups
    assert group.pixels.dtype == np.float32
    assert group.pixels.flags.c_contiguous
    assert group.pixels.shape == (1, *expected.shape)
    assert group.sizes.tolist() == [list(size)]
    assert group.original_sizes.tolist() == [[height, width]]
    assert np.abs(group.pixels[0] - expected).max() <= tolerance(spec)


@pytest.mark.parametrize("threads", [1, 2])
def test_torchs_thread_count_moves_only_the_last_digits(threads: int) -> None:
    torch.set_num_threads(threads)
    pixels = noise(480, 640)
    expected, _ = stock_batch(pixels, RCNN)
    (group,) = prepare_block([encoded("a.png", png(pixels))], RCNN, NO_LIMIT).groups
    assert np.abs(group.pixels[0] - expected).max() <= (1e-6 if threads == 1 else 5e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([SMALL_RCNN, InputSpec((13, 29), 1, 1, 1, MEAN, STD)]),
    st.sampled_from([Turn(), *TURNS.values()]),
)
def test_any_small_picture_equals_torchvision_however_it_lies(
    height: int, width: int, spec: InputSpec, turn: Turn
) -> None:
    size = output_size(height, width, spec)
    if min(size) == 0:
        return
    pixels = noise(height, width, seed=height * 100 + width)
    out = np.zeros((3, *padded_size(*size, spec)), np.float32)
    resize_normalised(as_decoded(pixels, turn), out[:, : size[0], : size[1]], spec)
    expected, expected_size = stock_batch(pixels, spec)
    assert size == tuple(expected_size)
    assert out.shape == expected.shape
    assert np.abs(out - expected).max() <= tolerance(spec)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([RCNN, RCNN_320, SMALL_RCNN]))
def test_output_size_is_torchvisions_to_the_pixel(height: int, width: int, spec: InputSpec) -> None:
    # On the meta device the transform computes shapes only, so real sizes cost nothing.
    size = output_size(height, width, spec)
    if min(size) == 0:
        return
    resized, _ = stock(spec).resize(torch.empty((3, height, width), device="meta"))
    assert size == tuple(resized.shape[1:])


@pytest.mark.parametrize(("height", "width"), [(1, 4000), (4000, 1), (2, 3000)])
def test_a_picture_resized_to_nothing_fails_in_a_row(height: int, width: int) -> None:
    spec = InputSpec(None, 800, 1333, 32, MEAN, STD)
    block = prepare_block([encoded("thin.png", png(noise(height, width)))], spec, NO_LIMIT)
    assert block.groups == ()
    assert (block.settled[0].stage, block.settled[0].code) == ("decode", "degenerate_size")
    assert block.settled[0].facts.width == width
    with pytest.raises(RuntimeError, match="greater than 0"):
        stock(spec)([stock_input(noise(height, width))])


def test_groups_by_padded_shape_keep_order_and_failures() -> None:
    unread = FailedImage(ImageRef("memory://gone.png"), "read", "not_found", "gone", ImageFacts(size_bytes=None))
    images = [
        encoded("wide.png", png(noise(48, 64))),
        encoded("tall.png", png(noise(64, 48))),
        unread,
        encoded("wide2.png", png(noise(96, 128, 1))),
        encoded("text.png", b"<html>"),
    ]
    block = prepare_block(images, RCNN_320, NO_LIMIT)
    assert [ref.uri for ref in block.refs] == [image.ref.uri for image in images]
    assert [group.positions.tolist() for group in block.groups] == [[0, 3], [1]]
    assert [group.pixels.shape for group in block.groups] == [(2, 3, 320, 448), (1, 3, 448, 320)]
    assert block.settled.keys() == {2, 4}
    assert block.settled[2] is unread
    assert (block.settled[4].stage, block.settled[4].code) == ("decode", "not_an_image")
    assert len(block.facts) == len(images)
    assert block.facts[0].width == 64
    assert block.facts[4].content_digest is not None
    assert block.facts[4].content_digest.startswith("sha256:")
    assert block.nbytes == 3 * 3 * 320 * 448 * 4


def test_padding_is_zero_whatever_the_memory_held() -> None:
    spec = InputSpec(None, 32, 100, 64, MEAN, STD)
    builder = GroupBuilder(np.full((4, 3, 64, 64), np.nan, np.float32))
    for seed in range(4):
        builder.add(seed, decode(png(noise(40, 50, seed)), NO_LIMIT), (32, 40), spec)
    group = builder.build()
    assert group.sizes.tolist() == [[32, 40]] * 4
    assert np.isfinite(group.pixels).all()
    assert not group.pixels[:, :, 32:, :].any()
    assert not group.pixels[:, :, :, 40:].any()


def test_exif_is_applied_before_the_resize() -> None:
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    Image.fromarray(noise(30, 50)).save(buffer, "JPEG", exif=exif)
    block = prepare_block([encoded("turned.jpg", buffer.getvalue())], SSDLITE, NO_LIMIT)
    assert block.groups[0].original_sizes.tolist() == [[50, 30]]
    assert (block.facts[0].width, block.facts[0].height, block.facts[0].exif_orientation) == (30, 50, 6)


# Reduced


@pytest.mark.parametrize(
    ("height", "width", "spec", "eighths"),
    [
        pytest.param(480, 640, SSDLITE, 8, id="too small"),
        pytest.param(960, 1280, SSDLITE, 4, id="just large enough"),
        pytest.param(959, 1280, SSDLITE, 8, id="one row too few"),
        pytest.param(960, 959, SSDLITE, 8, id="one column too few"),
        pytest.param(1080, 1920, SSDLITE, 4, id="1080p"),
        pytest.param(3000, 4000, SSDLITE, 2, id="12 megapixels"),
        pytest.param(6000, 8000, SSDLITE, 1, id="48 megapixels"),
        pytest.param(480, 640, RCNN, 8, id="grows"),
        pytest.param(3000, 4000, RCNN, 4, id="R-CNN"),
        pytest.param(2000, 8000, RCNN, 2, id="longer side limits"),
    ],
)
def test_the_scale_leaves_half_again_of_what_the_model_takes(
    height: int, width: int, spec: InputSpec, eighths: int
) -> None:
    assert reduced_scale(spec, height, width) == eighths
    assert full_scale(spec, height, width) == FULL_SCALE


def four_spots(height: int, width: int) -> PixelArray:
    """A bright spot in each quarter, near the corners."""
    y, x = np.arange(height)[:, None, None], np.arange(width)[:, None]
    places = [(at_y * height, at_x * width) for at_y in (0.1, 0.9) for at_x in (0.1, 0.9)]
    spots = sum(np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / 800) for at_y, at_x in places)
    return np.repeat((255 * spots).astype(np.uint8), 3, axis=2)


def centres(planes: FloatArray) -> FloatArray:
    """[4, 2] (y, x) centre of mass of each quarter's spot."""
    grey = planes[0] - planes[0].min()
    grey = np.maximum(grey - 0.1 * grey.max(), 0)
    height, width = grey.shape
    found = []
    for top, bottom in ((0, height // 2), (height // 2, height)):
        for left, right in ((0, width // 2), (width // 2, width)):
            part = grey[top:bottom, left:right].astype(np.float64)
            y, x = np.mgrid[top:bottom, left:right]
            found.append(((y * part).sum() / part.sum(), (x * part).sum() / part.sum()))
    return np.array(found, np.float32)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("height", "width", "spec"), [(1303, 1545, OBLONG), (1083, 1541, RCNN_320)])
def test_boxes_land_where_the_full_pictures_would(height: int, width: int, spec: InputSpec, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    Image.fromarray(four_spots(height, width)).save(buffer, "JPEG", quality=95, exif=exif)
    images = [encoded("spots.jpg", buffer.getvalue())]
    exact, fast = (prepare_block(images, spec, NO_LIMIT, scale) for scale in (full_scale, reduced_scale))
    assert (exact.facts[0].decoder or "").endswith("/exact")
    assert (fast.facts[0].decoder or "").endswith("/fast")
    assert replace(fast.facts[0], decoder=None) == replace(exact.facts[0], decoder=None)
    for field in ("positions", "sizes", "original_sizes"):
        np.testing.assert_array_equal(getattr(fast.groups[0], field), getattr(exact.groups[0], field))
    height, width = exact.groups[0].sizes[0]
    left, right = (block.groups[0].pixels[0][:, :height, :width] for block in (exact, fast))
    np.testing.assert_allclose(centres(right), centres(left), atol=0.02)


def test_a_picture_too_small_to_reduce_stays_exact() -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(480, 640)).save(buffer, "JPEG")
    images = [encoded("small.jpg", buffer.getvalue()), encoded("large.png", png(noise(1200, 1300)))]
    exact, fast = (prepare_block(images, SSDLITE, NO_LIMIT, scale) for scale in (full_scale, reduced_scale))
    assert fast.facts == exact.facts
    np.testing.assert_array_equal(fast.groups[0].pixels, exact.groups[0].pixels)


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
@pytest.mark.parametrize("spec", [SSD, SSDLITE, RCNN], ids=["ssd", "ssdlite", "rcnn"])
@pytest.mark.parametrize("source", ["bccd", "mcu", "large", "nasty"])
def test_photographs_feed_a_detector_what_stock_torchvision_feeds_it(
    source: str, spec: InputSpec, data_folder: Path
) -> None:
    pattern = "orient_6.jpg" if source == "nasty" else "*.[jJ][pP]*[gG]"
    files = sorted((data_folder / source).rglob(pattern), key=lambda path: path.stat().st_size)[:2]
    if not files:
        pytest.skip(f"no {source} pictures")
    block = prepare_block([encoded(path.name, path.read_bytes()) for path in files], spec, NO_LIMIT)
    prepared = {int(at): group.pixels[row] for group in block.groups for row, at in enumerate(group.positions)}
    for place, path in enumerate(files):
        raw = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        image = torchvision.io.decode_image(raw, "RGB", apply_exif_orientation=True)
        expected = stock(spec)([image.float() / 255])[0].tensors[0].numpy()
        assert prepared[place].shape == expected.shape
        assert np.abs(prepared[place] - expected).max() <= tolerance(spec)


def test_an_empty_block_is_empty() -> None:
    block = prepare_block([], SSD, NO_LIMIT)
    assert (block.refs, block.facts, block.groups, dict(block.settled)) == ((), (), (), {})
