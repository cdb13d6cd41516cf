"""A picture no process survives: stands for the file that crashes a decoder written in C."""

import os
from typing import Any

from PIL import BmpImagePlugin

DEADLY_BYTES = b"BM-DEADLY" + bytes(64)


def install() -> None:
    """Make this process's BMP reader end the process on `DEADLY_BYTES`; run by Ray in every worker it starts."""
    open_bitmap = BmpImagePlugin.BmpImageFile._open

    def open_or_die(image: Any) -> None:
        start = image.fp.read(len(DEADLY_BYTES))
        if start == DEADLY_BYTES:
            os._exit(139)
        image.fp.seek(0)
        open_bitmap(image)

    BmpImagePlugin.BmpImageFile._open = open_or_die  # type: ignore[method-assign]
