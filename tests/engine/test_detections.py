"""Columns of detections stay together, also as one buffer."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from batchdet.engine.detections import Detections, pack, unpack


@given(st.integers(0, 40), st.integers(0, 7), st.integers(0, 2**32))
def test_what_is_packed_is_unpacked_bit_for_bit(count: int, images: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = Detections(
        boxes=torch.randn(count, 4, generator=generator).flip(1),
        scores=torch.rand(count, generator=generator),
        labels=torch.randint(1, 2**40, (count,), generator=generator),
        image_index=torch.arange(count),
        capped=torch.rand(images, generator=generator) < 0.5,
        finite=torch.rand(images, generator=generator) < 0.5,
    )
    packed = pack(found)
    assert packed.nbytes == 36 * count + 2 * images
    back = unpack(packed.clone(), count, images)
    for name in Detections.__slots__:
        column, same = getattr(found, name), getattr(back, name)
        assert (column.dtype, column.shape) == (same.dtype, same.shape)
        assert torch.equal(column, same), name
