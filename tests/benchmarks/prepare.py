"""How fast a reader prepares images, against a loop of Pillow or torchvision's decoder and torchvision's transform.

Run: OMP_NUM_THREADS=1 python -m tests.benchmarks.prepare

One thread. Times are CPU milliseconds an image, medians of interleaved rounds; trust the ratios. `exact` and `fast` are
a reader's whole work on a block, from the file's bytes to what the detector takes, content digest and all.
"""

import argparse
import io
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from batchdet.engine.decode import DecodedImage, decode
from batchdet.engine.prepare import prepare_block
from batchdet.engine.resize import output_size, padded_size, resize_normalised
from batchdet.engine.scale import SCALES
from batchdet.records import EncodedImage, FloatArray, ImageRef, InputSpec
from tests.benchmarks.report import print_results

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPECS = {
    "320x320": InputSpec((320, 320), 320, 320, 1, MEAN, STD),
    "R-CNN 800": InputSpec(None, 800, 1333, 32, MEAN, STD),
}
SIZES = {"640x480": (480, 640), "1920x1080": (1080, 1920), "4000x3000": (3000, 4000)}
NO_LIMIT = 1 << 40
BLOCK_PIXELS = 16 * 640 * 480
ROUND_SECONDS = 0.02
"""About how long each variant runs in a round, at least once."""
ROUNDS = 15
GOAL_SPEC = "320x320"


def interleaved_ms(variants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median CPU milliseconds of one call of each variant."""
    calls = {name: max(1, round(ROUND_SECONDS / cpu_seconds(run, 1))) for name, run in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, run in variants.items():
            times[name].append(cpu_seconds(run, calls[name]) / calls[name])
    return {name: median(found) * 1e3 for name, found in times.items()}


def cpu_seconds(run: Callable[[], object], calls: int) -> float:
    started = time.process_time()
    for _ in range(calls):
        run()
    return time.process_time() - started


def photograph(height: int, width: int) -> bytes:
    """A JPEG with the texture of a photograph: smooth noise at several scales."""
    draw = np.random.default_rng(0)
    layers = [
        np.asarray(
            Image.fromarray(draw.integers(0, 256, (height // s, width // s, 3), dtype=np.uint8)).resize((width, height))
        )
        for s in (4, 16, 64)
    ]
    buffer = io.BytesIO()
    Image.fromarray(np.mean(layers, axis=0).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def by_pillow(data: bytes) -> Tensor:
    """[3, H, W] float32 in [0, 1], the usual way."""
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous().float() / 255


def by_torchvision(data: bytes) -> Tensor:
    """The same from torchvision's own decoder."""
    return torchvision.io.decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), "RGB").float() / 255


def resized(image: DecodedImage, spec: InputSpec) -> FloatArray:
    size = output_size(image.height, image.width, spec)
    out = np.zeros((3, *padded_size(*size, spec)), np.float32)
    resize_normalised(image, out[:, : size[0], : size[1]], spec)
    return out


def measure(data: bytes, block_images: int, spec: InputSpec) -> tuple[dict[str, float], float]:
    """Milliseconds of every way with one picture and one model input, and how far `exact` lies from the transform."""
    transform = GeneralizedRCNNTransform(
        spec.min_size, spec.max_size, list(MEAN), list(STD), spec.size_divisible, spec.fixed_size
    ).eval()
    block = [EncodedImage(ImageRef("memory://a.jpg"), data)] * block_images
    image, tensor = decode(data, NO_LIMIT), by_pillow(data)
    difference = np.abs(resized(image, spec) - transform([tensor])[0].tensors[0].numpy()).max()
    ms = interleaved_ms(
        {
            "pillow": lambda: transform([by_pillow(data)]),
            "torchvision": lambda: transform([by_torchvision(data)]),
            "exact": lambda: prepare_block(block, spec, NO_LIMIT, SCALES["exact"]),
            "fast": lambda: prepare_block(block, spec, NO_LIMIT, SCALES["fast"]),
            "decode": lambda: decode(data, NO_LIMIT),
            "resize": lambda: resized(image, spec),
            "transform": lambda: transform([tensor]),
        }
    )
    for name in SCALES:
        ms[name] /= block_images
    return ms, float(difference)


def row(ms: dict[str, float], difference: float) -> str:
    """The cells."""
    times = [ms[name] for name in ("pillow", "torchvision", "exact", "fast", "decode", "resize", "transform")]
    ratios = [ms[peer] / ms[ours] for ours in ("exact", "fast") for peer in ("pillow", "torchvision")]
    return " | ".join(
        [*(f"{value:.2f}" for value in times), *(f"{value:.1f}" for value in ratios), f"{difference:.1e}"]
    )


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The image decoding and encoding capabilities", DeprecationWarning)
    print(
        "| image | model input | Pillow + transform ms | torchvision + transform ms | exact ms | fast ms | decode ms "
        "| resize ms | transform ms | exact over Pillow | over torchvision | fast over Pillow | over torchvision "
        "| exact: max difference |"
    )
    print("|---" * 14 + "|")
    numbers: dict[str, float] = {}
    for name, (height, width) in SIZES.items():
        data = photograph(height, width)
        block_images = max(1, BLOCK_PIXELS // (height * width))
        for spec_name, spec in SPECS.items():
            ms, difference = measure(data, block_images, spec)
            print(f"| {name} | {spec_name} | {row(ms, difference)} |", flush=True)
            if spec_name == GOAL_SPEC:
                numbers[f"{width}x{height}: Pillow and transform / exact"] = ms["pillow"] / ms["exact"]
                numbers[f"{width}x{height}: Pillow and transform / fast"] = ms["pillow"] / ms["fast"]
    print_results(numbers)


if __name__ == "__main__":
    main()
