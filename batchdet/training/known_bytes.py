"""What bytes known images have, so that copies of them are told under any name. Knows no pixels and no labels."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from batchdet.reading import cut_blocks
from batchdet.records import EncodedImage, ImageRef
from batchdet.storage.reader import BlockReader

BLOCK_IMAGES = 64


def content_digests(uris: Iterable[str | None], options: Mapping[str, Any]) -> dict[str, str]:
    """`sha256:<hex>` of the files by URI, as the column content_digest has it; none of those that cannot be read.

    Args:
        uris: of images; None is left out.
        options: fsspec storage options.
    """
    reader = BlockReader(options)
    refs = [ImageRef(uri) for uri in dict.fromkeys(uris) if uri is not None]
    return {
        image.ref.uri: "sha256:" + hashlib.sha256(image.data).hexdigest()
        for block in cut_blocks(refs, BLOCK_IMAGES)
        for image in reader.fetch(block)
        if isinstance(image, EncodedImage)
    }
