"""A picture no process survives: stands for the file that crashes a decoder written in C."""

import os

from PIL import BmpImagePlugin, Image

DEADLY_BYTES = b"BM-DEADLY" + bytes(64)


def install() -> None:
    """Make this process's BMP reader end the process on `DEADLY_BYTES`; run by Ray in every worker it starts."""

    def open_or_die(stream: object, filename: object = None) -> BmpImagePlugin.BmpImageFile:
        start = stream.read(len(DEADLY_BYTES))  # type: ignore[attr-defined]
        if start == DEADLY_BYTES:
            os._exit(139)
        stream.seek(0)  # type: ignore[attr-defined]
        return BmpImagePlugin.BmpImageFile(stream, filename)

    Image.register_open("BMP", open_or_die, lambda prefix: prefix.startswith(b"BM"))
