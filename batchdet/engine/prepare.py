"""A block of encoded images becomes arrays a detector takes. Knows no detector, no batches and where no byte came from.

Runs in readers, so it needs numpy, Pillow and simplejpeg only.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from batchdet.engine.decode import DecodedImage, Scratch, decode
from batchdet.engine.resize import output_size, padded_size, resize_normalised
from batchdet.engine.scale import Scale, full_scale
from batchdet.errors import DecodeError
from batchdet.records import (
    CopiedImage,
    EncodedImage,
    FailedImage,
    FloatArray,
    ImageFacts,
    InputSpec,
    PreparedBlock,
    PreparedGroup,
    Settled,
)


@dataclass(slots=True)
class GroupBuilder:
    """Images of one padded shape, written in place as they come.

    Attributes:
        pixels: [capacity, 3, H, W] float32, at first of any content.
    """

    pixels: FloatArray
    positions: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    original_sizes: list[tuple[int, int]] = field(default_factory=list)

    def add(self, position: int, image: DecodedImage, size: tuple[int, int], spec: InputSpec) -> None:
        """Resize `image` to `size` (height, width) into the next place; `position` is its place in the block."""
        height, width = size
        target = self.pixels[len(self.positions)]
        resize_normalised(image, target[:, :height, :width], spec)
        target[:, height:, :] = 0
        target[:, :height, width:] = 0
        self.positions.append(position)
        self.sizes.append(size)
        self.original_sizes.append((image.height, image.width))

    def build(self) -> PreparedGroup:
        """The images added."""
        return PreparedGroup(
            pixels=self.pixels[: len(self.positions)],
            positions=np.array(self.positions, np.int64),
            sizes=np.array(self.sizes, np.int64),
            original_sizes=np.array(self.original_sizes, np.int64),
        )


def prepare_block(
    encoded: Sequence[EncodedImage | FailedImage], spec: InputSpec, max_pixels: int, scale: Scale = full_scale
) -> PreparedBlock:
    """Decode, turn upright, resize, normalise and pad every image of a block as torchvision's transform would.

    An image that cannot be decoded becomes a FailedImage of stage `decode` with the code of its DecodeError, or
    `degenerate_size` when the model's resize would leave it no pixels (1 × 4000 under an R-CNN). An image that has
    the bytes of one of its twins becomes a CopiedImage and is not decoded. Never raises for an image.

    Args:
        encoded: the images as read, in plan order; those that could not be read pass through.
        spec: how the model takes pictures.
        max_pixels: width × height above which an image is refused before its pixels are decoded.
        scale: at which scale JPEGs are decoded; sizes and facts are those of the full picture at any.
    """
    builders: dict[tuple[int, int], GroupBuilder] = {}
    settled: dict[int, Settled] = {}
    facts: list[ImageFacts] = []
    scratch = Scratch()
    for position, image in enumerate(encoded):
        outcome = image if isinstance(image, FailedImage) else _decode_image(image, spec, max_pixels, scale, scratch)
        if isinstance(outcome, FailedImage | CopiedImage):
            settled[position] = outcome
            facts.append(outcome.facts)
            continue
        decoded, image_facts = outcome
        facts.append(image_facts)
        size = output_size(decoded.height, decoded.width, spec)
        shape = padded_size(*size, spec)
        if shape not in builders:
            # Room for all that may follow; memory is only taken where it is written.
            builders[shape] = GroupBuilder(np.empty((len(encoded) - position, 3, *shape), np.float32))
        builders[shape].add(position, decoded, size, spec)
    return PreparedBlock(
        refs=tuple(image.ref for image in encoded),
        facts=tuple(facts),
        settled=settled,
        groups=tuple(builder.build() for builder in builders.values()),
    )


def _decode_image(
    image: EncodedImage, spec: InputSpec, max_pixels: int, scale: Scale, scratch: Scratch
) -> tuple[DecodedImage, ImageFacts] | Settled:
    digest = "sha256:" + hashlib.sha256(image.data).hexdigest()
    bytes_facts = ImageFacts(content_digest=digest, size_bytes=len(image.data))
    for twin in image.ref.twins:
        if twin.content_digest == digest:
            return CopiedImage(image.ref, bytes_facts, twin)
    try:
        decoded = decode(image.data, max_pixels, functools.partial(scale, spec), scratch)
    except DecodeError as error:
        return FailedImage(image.ref, "decode", error.code, error.reason, bytes_facts)
    facts = ImageFacts(
        width=decoded.width,
        height=decoded.height,
        exif_orientation=decoded.exif_orientation,
        content_digest=digest,
        decoder=decoded.decoder,
        size_bytes=len(image.data),
    )
    height, width = output_size(decoded.height, decoded.width, spec)
    if height < 1 or width < 1:
        reason = f"{decoded.width} x {decoded.height} would be resized to {width} x {height}"
        return FailedImage(image.ref, "decode", "degenerate_size", reason, facts)
    return decoded, facts
