"""What this machine offers a detector: torch, GPUs, memory, image formats. Knows no bucket and no cluster."""

import importlib.util
import os
import platform

import PIL
import torch
import torchvision
from PIL import features

from batchdet.records import Fact

_FORMATS = {"JPEG": "jpg", "PNG": "zlib", "WebP": "webp", "AVIF": "avif", "TIFF": "libtiff"}
"""Format to Pillow's name of what decodes it; GIF and BMP need nothing."""

_LOW_MEMORY = 4 << 30


def engine_facts() -> list[Fact]:
    """Versions, threads, GPUs, memory and formats of this machine."""
    return [
        Fact("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Fact("torch", "ok", f"{torch.__version__}, torchvision {torchvision.__version__}"),
        Fact("threads", "ok", f"{torch.get_num_threads()} of torch, {os.cpu_count()} cores"),
        _memory(),
        *_gpus(),
        *_formats(),
    ]


def _memory() -> Fact:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    finding = f"{total / (1 << 30):.1f} GiB"
    return Fact("memory", "ok", finding) if total >= _LOW_MEMORY else Fact("memory", "warn", f"{finding}, 4 are wanted")


def _gpus() -> list[Fact]:
    if not torch.cuda.is_available():
        return [Fact("GPU", "ok", "none; detection runs on the CPU")]
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        Fact(f"GPU {index}", "ok", f"{gpu.name}, {gpu.total_memory / (1 << 30):.0f} GiB")
        for index, gpu in enumerate(found)
    ]


def _formats() -> list[Fact]:
    have = [name for name, codec in _FORMATS.items() if features.check(codec)]
    lack = [name for name in _FORMATS if name not in have]
    pillow = f"{', '.join(have)}, GIF, BMP by Pillow {PIL.__version__}"
    facts = [Fact("formats", "ok" if "JPEG" in have else "fail", pillow)]
    if lack:
        facts.append(Fact("formats", "warn", f"{', '.join(lack)} missing from this Pillow; such images fail"))
    heif = importlib.util.find_spec("pillow_heif") is not None
    hint = "pillow-heif is here" if heif else 'missing; pip install "batchdet[heif]", or such images fail'
    return [*facts, Fact("HEIC", "ok" if heif else "warn", hint)]
