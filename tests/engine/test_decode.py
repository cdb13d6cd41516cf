"""Decoding: the odd-file oracle, orientation, modes, codes, and a fuzz over every format."""

import csv
import io
import os
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import pillow_heif
import pytest
import simplejpeg
import torch
import torchvision
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin

from batchdet.engine.decode import DecodedImage, Scratch, decode
from batchdet.errors import DecodeError

PILLOW_LIMIT = 178_956_970
JPEG_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, struct.error)


def find_nasty() -> Path | None:
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("BATCHDET_TEST_DATA", beside)) / "nasty"
    return folder if (folder / "expected.csv").is_file() else None


NASTY = find_nasty()


def nasty_rows() -> list[dict[str, str]]:
    if NASTY is None:
        return []
    with (NASTY / "expected.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def picture(height: int = 40, width: int = 56, seed: int = 0) -> Image.Image:
    """Smooth patches with noise: no symmetry, so every orientation differs."""
    draw = np.random.default_rng(seed)
    patches = np.kron(draw.integers(40, 216, (height // 8, width // 8, 3)), np.ones((8, 8, 1)))
    return Image.fromarray((patches + draw.integers(-40, 40, patches.shape)).astype(np.uint8))


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    if image_format == "HEIF":
        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        # A copy: Pillow leaves settings of one format's encoder on the image, and trips over them in the next.
        image.copy().save(buffer, image_format, **options)
    return buffer.getvalue()


def with_orientation(value: int, kind: int = 3, count: int = 1) -> bytes:
    """An EXIF block with one entry, orientation: `kind` 3 is SHORT, 2 ASCII, 4 LONG, 9 SLONG."""
    packed = struct.pack("<hxx", value) if kind == 9 else struct.pack("<Hxx", value)
    return b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00" + struct.pack("<HHI", 274, kind, count) + packed + bytes(4)


def code_of(data: bytes, max_pixels: int = PILLOW_LIMIT) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, max_pixels)
    assert caught.value.reason
    assert "\n" not in caught.value.reason
    assert " at 0x" not in caught.value.reason
    return caught.value.code


# The oracle


NASTY_CODES = {
    "truncated_progressive.jpg": "truncated",
    "truncated_web_8mp.jpg": "truncated",
    "ultrahdr_cut.jpg": "truncated",
    "truncated.png": "truncated",
    "truncated_half.jpg": "truncated",
    "random.jpg": "truncated",
    "itxt_dos.png": "corrupt",
    "huge_header.png": "corrupt",
    "bomb.gif": "too_many_pixels",
    "bomb_30000.png": "too_many_pixels",
    "zero_bytes.jpg": "empty",
    "html.jpg": "not_an_image",
}


@pytest.mark.skipif(NASTY is None, reason="the odd files are not here; set BATCHDET_TEST_DATA")
@pytest.mark.parametrize("row", nasty_rows(), ids=lambda row: row["file"])
def test_odd_files_end_as_the_oracle_says(row: dict[str, str]) -> None:
    assert NASTY is not None
    data = (NASTY / "files" / row["file"]).read_bytes()
    if row["expect"] == "reject":
        assert code_of(data) == NASTY_CODES[row["file"]]
        return
    image = decode(data, PILLOW_LIMIT)
    assert f"{image.width}x{image.height}" == row["expected_size"]
    assert image.pixels.shape == (image.height, image.width, 3)
    written = int(row["exif_orientation"] or 0)
    assert image.exif_orientation == (written if 1 <= written <= 8 else None)
    if row["pixels"] == "compare" or row["pil_mode"] != "I;16":
        expected = [float(value) for value in row["rgb_mean"].split()]
        # Half a grey level: codecs differ in the last bit from version to version.
        np.testing.assert_allclose(image.pixels.reshape(-1, 3).mean(axis=0), expected, atol=0.5)
        grid = np.array([float(value) for value in row["luma_grid3x3"].split()])
        np.testing.assert_allclose(luma_grid(image), grid, atol=1.6)


def luma_grid(image: DecodedImage) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Mean luma of a 3 × 3 grid: tells every orientation from every other."""
    luma = np.asarray(Image.fromarray(image.pixels).convert("L").resize((3, 3), Image.Resampling.BOX), np.float64)
    return luma.ravel()


# Orientation


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_would(image_format: str, orientation: int) -> None:
    data = saved(picture(), image_format, exif=with_orientation(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    image = decode(data, PILLOW_LIMIT)
    np.testing.assert_array_equal(image.pixels, expected)
    assert (image.width, image.height) == ((40, 56) if orientation > 4 else (56, 40))
    # Pillow's AVIF plug-in reports an orientation of 1 as none.
    assert (image.exif_orientation or 1) == orientation


def test_heic_is_turned_by_its_own_library() -> None:
    data = saved(picture(), "HEIF", exif=with_orientation(6), quality=90)
    image = decode(data, PILLOW_LIMIT)
    assert (image.width, image.height) == (40, 56)
    turned = {
        way: np.asarray(picture().transpose(way), np.float64)
        for way in (Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_90)
    }
    right, wrong = (np.abs(image.pixels - pixels).mean() for pixels in turned.values())
    assert right < wrong / 2
    assert image.decoder == f"pillow-heif-{pillow_heif.__version__}/exact"


@pytest.mark.parametrize(
    ("value", "kind", "count"),
    [
        pytest.param(0, 3, 1, id="zero"),
        pytest.param(9, 3, 1, id="nine"),
        pytest.param(65535, 3, 1, id="largest"),
        pytest.param(-1, 9, 1, id="negative"),
        pytest.param(ord("6"), 2, 2, id="text"),
        pytest.param(6, 99, 1, id="no such type"),
    ],
)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_an_invalid_orientation_is_ignored(value: int, kind: int, count: int, image_format: str) -> None:
    data = saved(picture(), image_format, exif=with_orientation(value, kind, count))
    image = decode(data, PILLOW_LIMIT)
    assert (image.width, image.height, image.exif_orientation) == (56, 40, None)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"Exif\x00\x00", id="empty"),
        pytest.param(b"Exif\x00\x00garbage", id="no TIFF header"),
        pytest.param(b"Exif\x00\x00II*\x00\xff\xff\xff\x7f", id="directory beyond the end"),
        pytest.param(b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff", id="entries missing"),
        pytest.param(
            b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\xff\xff\xff\x7f", id="count too large"
        ),
    ],
)
def test_unreadable_exif_spoils_no_pixels(block: bytes) -> None:
    plain = decode(saved(picture(), "JPEG"), PILLOW_LIMIT)
    image = decode(saved(picture(), "JPEG", exif=block), PILLOW_LIMIT)
    np.testing.assert_array_equal(image.pixels, plain.pixels)
    assert image.exif_orientation is None


# Modes


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_every_eight_bit_mode_becomes_rgb(mode: str, image_format: str) -> None:
    source = picture().convert(mode)
    image = decode(saved(source, image_format), PILLOW_LIMIT)
    np.testing.assert_array_equal(image.pixels, np.asarray(source.convert("RGB")))


@pytest.mark.parametrize("image_format", ["TIFF", "JPEG"])
def test_cmyk_becomes_rgb(image_format: str) -> None:
    options = {} if image_format == "TIFF" else {"quality": 100, "subsampling": 0}
    source = picture().convert("CMYK")
    image = decode(saved(source, image_format, **options), PILLOW_LIMIT)
    difference = np.abs(image.pixels.astype(int) - np.asarray(source.convert("RGB")).astype(int))
    assert difference.max() <= (0 if image_format == "TIFF" else 6)


def test_alpha_is_dropped_not_composited() -> None:
    source = picture().convert("RGBA")
    source.putalpha(0)
    image = decode(saved(source, "PNG"), PILLOW_LIMIT)
    np.testing.assert_array_equal(image.pixels, np.asarray(picture()))


def test_palette_transparency_is_dropped() -> None:
    source = picture().quantize(16)
    data = saved(source, "PNG", transparency=bytes([0, 128] * 8))
    np.testing.assert_array_equal(decode(data, PILLOW_LIMIT).pixels, np.asarray(source.convert("RGB")))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(image_format: str) -> None:
    grey = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    image = decode(saved(Image.fromarray(grey), image_format), PILLOW_LIMIT)
    expected = np.round(grey / 257.0).astype(np.uint8)
    np.testing.assert_array_equal(image.pixels, np.repeat(expected[:, :, None], 3, axis=2))


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixels_without_a_range_are_refused(mode: str) -> None:
    source = Image.new("LAB", (8, 8)) if mode == "LAB" else picture().convert("L").convert(mode)
    assert code_of(saved(source, "TIFF")) == "unsupported_mode"


@pytest.mark.parametrize("image_format", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_the_first_frame_is_taken(image_format: str) -> None:
    first, second = picture(seed=1), picture(seed=2)
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = saved(first, image_format, save_all=True, append_images=[second], **options)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(decode(data, PILLOW_LIMIT).pixels, expected)
    assert np.abs(expected.astype(int) - np.asarray(first).astype(int)).mean() < 25


# Fidelity


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(48, 64), (47, 61)])
def test_jpeg_pixels_are_torchvisions(subsampling: str, quality: int, progressive: bool, size: tuple[int, int]) -> None:
    source = picture(64, 64).crop((0, 0, size[1], size[0]))
    data = saved(source, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    stock = torchvision.io.decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), "RGB")
    np.testing.assert_array_equal(decode(data, PILLOW_LIMIT).pixels, stock.permute(1, 2, 0).numpy())


def jpegs() -> dict[str, bytes]:
    """Every way Pillow and simplejpeg can write a JPEG that both can read."""
    made = {
        "restarts": saved(picture(), "JPEG", restart_marker_blocks=2),
        "RGB": saved(picture(), "JPEG", keep_rgb=True),
    }
    made["MPO"] = saved(picture(), "MPO", save_all=True, append_images=[picture(seed=3)])
    for height, width in [(40, 56), (33, 47), (17, 8), (1, 1)]:
        crop = picture(64, 64).crop((0, 0, width, height))
        for progressive in (False, True):
            name = f"{width}x{height}{' progressive' if progressive else ''}"
            made[f"{name} grey"] = saved(crop.convert("L"), "JPEG", progressive=progressive)
            for subsampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1"):
                options = {"subsampling": subsampling, "progressive": progressive}
                made[f"{name} {subsampling}"] = saved(crop, "JPEG", quality=60, **options)
        for subsampling in ("440", "411"):
            made[f"{name} {subsampling}"] = simplejpeg.encode_jpeg(np.array(crop), 60, "RGB", subsampling)
    return made


def by_pillow(data: bytes) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None, str]:
    """What Pillow alone makes of a JPEG: its pixels as stored, or the name of its error."""
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            image.load()
            return np.asarray(image.convert("RGB")), ""
    except JPEG_ERRORS as error:
        return None, type(error).__name__


@pytest.mark.parametrize("data", jpegs().values(), ids=jpegs().keys())
def test_sound_jpegs_have_pillows_pixels(data: bytes) -> None:
    image = decode(data, PILLOW_LIMIT)
    expected, _ = by_pillow(data)
    np.testing.assert_array_equal(image.pixels, expected)
    assert image.decoder == f"simplejpeg-{simplejpeg.__version__}/exact"


def check_as_pillow(data: bytes) -> None:
    expected, error = by_pillow(data)
    for eighths in (8, 2):
        try:
            image = decode(data, PILLOW_LIMIT, lambda height, width: eighths)  # noqa: B023
        except DecodeError as failure:
            assert expected is None
            assert failure.reason.startswith(f"{error}:")
            continue
        assert expected is not None
        if image.eighths == 8:
            np.testing.assert_array_equal(image.stored[:, :, :3], expected)
            assert (image.decoder == f"pillow-{PIL.__version__}/exact") or eighths == 8
        assert image.width * image.height == expected.shape[0] * expected.shape[1]


@pytest.mark.parametrize("seed", range(3))
def test_damaged_jpegs_end_as_pillow_ends_them(seed: int) -> None:
    draw = random.Random(seed)
    for good in [*jpegs().values(), saved(picture().convert("CMYK"), "JPEG")]:
        for _ in range(4):
            data = bytearray(good)
            # What tells the format and the size stays: those are other tests', and a large size is slow.
            draw.choice(mutations())(draw, data)
            if data.startswith(b"\xff\xd8\xff") and not is_large(bytes(data)):
                check_as_pillow(bytes(data))


def is_large(data: bytes) -> bool:
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            return image.width * image.height > 1_000_000
    except JPEG_ERRORS:
        return False


@pytest.mark.parametrize("progressive", [False, True])
def test_a_missing_end_is_judged_by_pillow(progressive: bool) -> None:
    good = saved(picture(), "JPEG", progressive=progressive)
    for missing in range(1, 80):
        check_as_pillow(good[:-missing])


def test_the_decoder_is_named() -> None:
    pillow, turbo = f"pillow-{PIL.__version__}", f"simplejpeg-{simplejpeg.__version__}"
    jpeg, cmyk = saved(picture(), "JPEG"), saved(picture().convert("CMYK"), "JPEG")
    for data, eighths, name in [
        (saved(picture(), "PNG"), 8, f"{pillow}/exact"),
        (saved(picture(), "PNG"), 4, f"{pillow}/exact"),
        (cmyk, 4, f"{pillow}/exact"),
        (jpeg, 8, f"{turbo}/exact"),
        (jpeg, 4, f"{turbo}/fast"),
    ]:
        assert decode(data, PILLOW_LIMIT, lambda height, width: eighths).decoder == name  # noqa: B023


# Reduced


@pytest.mark.parametrize("eighths", [1, 2, 4, 8])
@pytest.mark.parametrize("orientation", [None, 3, 6])
def test_a_reduced_picture_keeps_the_facts_of_the_full_one(eighths: int, orientation: int | None) -> None:
    exif = {} if orientation is None else {"exif": with_orientation(orientation)}
    asked: list[tuple[int, int]] = []
    source = picture(72, 104).crop((0, 0, 101, 67))
    image = decode(
        saved(source, "JPEG", **exif),
        PILLOW_LIMIT,
        lambda *size: asked.append(size) or eighths,  # type: ignore[func-returns-value]
    )
    upright = (101, 67) if orientation == 6 else (67, 101)
    assert asked == [upright]
    assert (image.height, image.width) == upright
    assert image.exif_orientation == orientation
    assert image.stored.shape == (-(-67 * eighths // 8), -(-101 * eighths // 8), 4)
    # What is left out is detail: the picture is no brighter and no darker.
    full = decode(saved(source, "JPEG", **exif), PILLOW_LIMIT)
    np.testing.assert_allclose(image.pixels.mean(axis=(0, 1)), full.pixels.mean(axis=(0, 1)), atol=4)


# Refusals


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"", "empty", id="no bytes"),
        pytest.param(b"\xff", "not_an_image", id="one byte"),
        pytest.param(b"<html><body>404</body></html>", "not_an_image", id="an error page"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", "not_an_image", id="EPS runs a program"),
        pytest.param(b"8BPS\x00\x01", "not_an_image", id="PSD"),
        pytest.param(b"SIMPLE  =                    T", "not_an_image", id="FITS"),
        pytest.param(b"\xd7\xcd\xc6\x9a\x00\x00", "not_an_image", id="WMF"),
        pytest.param(b"P6 2 2 255 ............", "not_an_image", id="PPM"),
        pytest.param(b"\x00\x00\x00\x18ftypisom\x00\x00\x00\x00isommp42", "not_an_image", id="a film"),
        pytest.param(b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1miaf", "corrupt", id="HEIF without content"),
        pytest.param(b"RIFF\x00\x00\x00\x00WAVEfmt ", "not_an_image", id="sound"),
        pytest.param(b"RIFF\x00\x00\x00\x00WEBPVP8 ", "corrupt", id="WebP without content"),
        pytest.param(b"\xff\xd8\xff\xe0", "corrupt", id="JPEG magic only"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "corrupt", id="PNG magic only"),
        pytest.param(b"GIF89a", "corrupt", id="GIF magic only"),
        pytest.param(b"II*\x00", "corrupt", id="TIFF magic only"),
        pytest.param(b"BM", "corrupt", id="BMP magic only"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_code(data: bytes, code: str) -> None:
    assert code_of(data) == code


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF"])
def test_half_a_file_is_refused(image_format: str) -> None:
    data = saved(picture(), image_format)
    assert code_of(data[: len(data) // 2]) in {"truncated", "corrupt"}


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_truncation_is_told_from_corruption(image_format: str) -> None:
    data = saved(picture(), image_format)
    assert code_of(data[: len(data) * 3 // 4]) == "truncated"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF"])
def test_max_pixels_is_the_last_size_that_passes(image_format: str) -> None:
    data = saved(picture(), image_format)
    assert decode(data, 40 * 56).width == 56
    assert code_of(data, 40 * 56 - 1) == "too_many_pixels"


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_max_pixels_is_told_by_the_header_and_beyond_pillows_own_limit(image_format: str) -> None:
    data = bytearray(saved(Image.new("L", (64, 64)), image_format))
    side = (30_000).to_bytes(4 if image_format == "PNG" else 2, "big")
    start = 16 if image_format == "PNG" else data.index(b"\xff\xc0") + 5
    data[start : start + 2 * len(side)] = side * 2
    if image_format == "PNG":
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    before = Image.MAX_IMAGE_PIXELS
    assert code_of(bytes(data), 899_999_999) == "too_many_pixels"
    assert code_of(bytes(data[: start + 100]), 900_000_000) in {"truncated", "corrupt"}
    assert before == Image.MAX_IMAGE_PIXELS


def test_truncated_files_stay_refused_in_this_process() -> None:
    decode(saved(picture(), "JPEG"), PILLOW_LIMIT)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_foreign_errors_are_the_cause() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(saved(picture(), "JPEG")[:200], PILLOW_LIMIT)
    assert isinstance(caught.value.__cause__, OSError)


def test_no_warning_leaks_from_any_thread() -> None:
    malformed = saved(
        picture(), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\xff\xff\xff\x7f"
    )
    with ThreadPoolExecutor(8) as pool, warnings.catch_warnings():
        warnings.simplefilter("error")
        images = list(pool.map(lambda _: decode(malformed, PILLOW_LIMIT), range(64)))
    assert {image.width for image in images} == {56}


# Fuzz


def mutations() -> list[Callable[[random.Random, bytearray], None]]:
    def cut(draw: random.Random, data: bytearray) -> None:
        del data[draw.randrange(len(data)) :]

    def overwrite(draw: random.Random, data: bytearray) -> None:
        reach = min(len(data), draw.choice([64, 256, len(data)]))
        for _ in range(draw.choice([1, 1, 2, 4, 16])):
            data[draw.randrange(reach)] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])

    def delete(draw: random.Random, data: bytearray) -> None:
        start = draw.randrange(len(data))
        del data[start : start + draw.randrange(1, 64)]

    def insert(draw: random.Random, data: bytearray) -> None:
        start = draw.randrange(len(data))
        data[start:start] = draw.randbytes(draw.randrange(1, 32))

    return [cut, overwrite, overwrite, delete, insert]


def good_files() -> dict[str, bytes]:
    image, exif = picture(), with_orientation(6)
    files = {
        "jpeg": saved(image, "JPEG", exif=exif),
        "jpeg progressive": saved(image, "JPEG", progressive=True),
        "jpeg cmyk": saved(image.convert("CMYK"), "JPEG"),
        "png": saved(image, "PNG", exif=exif),
        "png palette": saved(image.quantize(16), "PNG", transparency=bytes(16)),
        "png 16 bit": saved(Image.fromarray(np.zeros((9, 9), np.uint16)), "PNG"),
        "png animated": saved(image, "PNG", save_all=True, append_images=[picture(seed=3)]),
        "webp": saved(image, "WEBP", exif=exif),
        "webp animated": saved(image, "WEBP", save_all=True, append_images=[picture(seed=3)]),
        "avif": saved(image, "AVIF", exif=exif),
        "gif": saved(image, "GIF", save_all=True, append_images=[picture(seed=3)]),
        "bmp": saved(image, "BMP"),
        "bmp palette": saved(image.quantize(16), "BMP"),
        "heif": saved(image, "HEIF"),
        "mpo": saved(image, "MPO", save_all=True, append_images=[picture(seed=3)]),
        "tiff": saved(image, "TIFF", exif=exif),
        "tiff pages": saved(image, "TIFF", save_all=True, append_images=[picture(seed=3)]),
    }
    return files | {
        f"tiff {name}": saved(image, "TIFF", compression=name)
        for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")
    }


def check_fuzz(seed: str, rounds: int) -> None:
    draw = random.Random(seed)
    for name, good in good_files().items():
        assert decode(good, PILLOW_LIMIT).pixels.dtype == np.uint8, name
        for _ in range(rounds):
            data = bytearray(good)
            draw.choice(mutations())(draw, data)
            try:
                image = decode(bytes(data), 1_000_000)
            except DecodeError as error:
                assert " at 0x" not in error.reason
                continue
            assert image.pixels.shape == (image.height, image.width, 3)
            assert image.pixels.dtype == np.uint8


@pytest.mark.parametrize("seed", ["one", "two"])
def test_damaged_files_end_as_pixels_or_decode_errors(seed: str) -> None:
    check_fuzz(seed, 150)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_many_damaged_files_end_as_pixels_or_decode_errors(seed: int) -> None:
    check_fuzz(f"slow {seed}", 4000)


def test_pictures_share_memory_one_after_the_other() -> None:
    pictures = []
    for width, height in ((40, 30), (64, 48), (16, 8)):
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    scratch = Scratch()
    images = [decode(data, PILLOW_LIMIT, scratch=scratch) for data in pictures[1:]]
    assert np.shares_memory(images[0].stored, images[1].stored)
    for data in pictures:
        assert np.array_equal(decode(data, PILLOW_LIMIT, scratch=scratch).pixels, decode(data, PILLOW_LIMIT).pixels)
