"""What passes through the driver grows with shards, not with images: messages and their bytes, counted."""

from pathlib import Path

import pytest

from tests.benchmarks.scale import run_idle

SHARDS = 6


@pytest.mark.usefixtures("ray_cluster")
def test_the_driver_gets_one_small_message_a_shard_however_many_images_it_has(tmp_path: Path) -> None:
    few = run_idle(str(tmp_path / "few"), labellers=2, shards=SHARDS, images_per_shard=2)
    many = run_idle(str(tmp_path / "many"), labellers=2, shards=SHARDS, images_per_shard=200)
    assert (few.calls, few.answers) == (many.calls, many.answers) == (SHARDS, SHARDS)
    assert many.nbytes - few.nbytes < 8 * SHARDS, "only the numbers in a report grow"
