"""At which scale a JPEG is decoded for a model's input: in full, or reduced. Knows no bytes and no pixels.

A JPEG is stored as 8 × 8 blocks of frequencies. A decoder can leave out the high ones and give a half, a quarter or an
eighth of each side for little more than it costs to read the bits. The smaller picture is resized as a full one is.
"""

from collections.abc import Mapping
from typing import Literal, Protocol

from batchdet.engine.decode import FULL_SCALE
from batchdet.engine.resize import output_size
from batchdet.records import InputSpec

# The other eighths cost more than full size: libjpeg-turbo has vector code for powers of two only.
_REDUCED = (1, 2, 4)
# Pixels a side keeps for each one the model takes: fewer would blur what the full picture's resize keeps sharp.
_SPARE = 1.5


class Scale(Protocol):
    """Chooses the eighths of a side that are decoded."""

    def __call__(self, spec: InputSpec, height: int, width: int) -> int:
        """1, 2, 4 or 8, for an upright picture of `height` × `width`."""


def full_scale(spec: InputSpec, height: int, width: int) -> int:
    """All of the picture: the pixels that torchvision's transform is fed."""
    return FULL_SCALE


def reduced_scale(spec: InputSpec, height: int, width: int) -> int:
    """The smallest scale at which both sides have 1.5 times the pixels of the model's input."""
    wanted = output_size(height, width, spec)
    for eighths in _REDUCED:
        if height * eighths >= _SPARE * FULL_SCALE * wanted[0] and width * eighths >= _SPARE * FULL_SCALE * wanted[1]:
            return eighths
    return FULL_SCALE


SCALES: Mapping[Literal["exact", "fast"], Scale] = {"exact": full_scale, "fast": reduced_scale}
"""By the job's `reading.decode`."""
