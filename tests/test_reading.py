"""Blocks are bounded by count and by bytes, and lose no image."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from batchdet.reading import BLOCK_BYTES, UNKNOWN_BYTES, cut_blocks
from batchdet.records import ImageRef

SIZES = st.lists(st.none() | st.integers(0, 2 * BLOCK_BYTES) | st.just(BLOCK_BYTES // 8), max_size=60)


def nbytes(block: Sequence[ImageRef]) -> int:
    return sum(UNKNOWN_BYTES if ref.size_bytes is None else ref.size_bytes for ref in block)


@given(SIZES, st.integers(1, 12))
def test_blocks_hold_few_bytes_and_every_image_once(sizes: list[int | None], block_images: int) -> None:
    refs = [ImageRef(f"memory://{place}.jpg", size_bytes=size) for place, size in enumerate(sizes)]
    blocks = list(cut_blocks(refs, block_images))
    assert [ref for block in blocks for ref in block] == refs
    for block in blocks:
        assert len(block) == 1 or (len(block) <= block_images and nbytes(block) <= BLOCK_BYTES)
    for block, after in pairwise(blocks):
        is_full = len(block) == block_images or nbytes([*block, after[0]]) > BLOCK_BYTES
        assert is_full, "a block is cut early for its bytes only"


def test_small_images_are_cut_by_count() -> None:
    refs = [ImageRef(f"memory://{place}.jpg", size_bytes=100_000) for place in range(70)]
    assert [len(block) for block in cut_blocks(refs, 32)] == [32, 32, 6]
