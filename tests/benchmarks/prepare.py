"""How fast a reader prepares images, against torchvision's own transform of the same pixels.

Run: OMP_NUM_THREADS=1 python -m tests.benchmarks.prepare
"""

import io
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from batchdet.engine.decode import decode
from batchdet.engine.prepare import prepare_block
from batchdet.engine.resize import output_size, padded_size, resize_normalised
from batchdet.records import EncodedImage, ImageRef, InputSpec, PixelArray

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPECS = {
    "320x320": InputSpec((320, 320), 320, 320, 1, MEAN, STD),
    "R-CNN 800": InputSpec(None, 800, 1333, 32, MEAN, STD),
}
SIZES = {"640x480": (480, 640), "1920x1080": (1080, 1920), "4000x3000": (3000, 4000)}
NO_LIMIT = 1 << 40


def best_ms(action: Callable[[], object], rounds: int = 7) -> float:
    """The fastest of several runs: what the machine can do when nobody disturbs it."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return min(times) * 1e3


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


def stock(pixels: PixelArray, transform: GeneralizedRCNNTransform) -> torch.Tensor:
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255
    images, _ = transform([tensor])
    return images.tensors


def ours(pixels: PixelArray, spec: InputSpec) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    size = output_size(*pixels.shape[:2], spec)
    out = np.zeros((3, *padded_size(*size, spec)), np.float32)
    resize_normalised(pixels, out[:, : size[0], : size[1]], spec)
    return out


def main() -> None:
    torch.set_num_threads(1)
    print(
        "| image | model input | decode ms | resize ms | torchvision ms | resize ratio | whole ratio | max difference |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, (height, width) in SIZES.items():
        data = photograph(height, width)
        pixels = np.array(decode(data, NO_LIMIT).pixels)
        decode_ms = best_ms(lambda data=data: decode(data, NO_LIMIT))
        for spec_name, spec in SPECS.items():
            transform = GeneralizedRCNNTransform(
                spec.min_size, spec.max_size, list(MEAN), list(STD), spec.size_divisible, spec.fixed_size
            ).eval()
            difference = np.abs(ours(pixels, spec) - stock(pixels, transform)[0].numpy()).max()
            ours_ms = best_ms(lambda pixels=pixels, spec=spec: ours(pixels, spec))
            stock_ms = best_ms(lambda pixels=pixels, transform=transform: stock(pixels, transform))
            block = [EncodedImage(ImageRef("memory://a.jpg"), data)]
            whole_ms = best_ms(lambda block=block, spec=spec: prepare_block(block, spec, NO_LIMIT))
            print(
                f"| {name} | {spec_name} | {decode_ms:.2f} | {ours_ms:.2f} | {stock_ms:.2f} | {stock_ms / ours_ms:.1f} "
                f"| {(decode_ms + stock_ms) / whole_ms:.1f} | {difference:.1e} |"
            )


if __name__ == "__main__":
    main()
