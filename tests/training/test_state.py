from pathlib import Path

import pytest
import torch

from batchdet.errors import ConfigError, ModelError
from batchdet.training.state import FACTS_NAME, TENSORS_NAME, TrainState, read_state, require_same_job, write_state


def test_what_is_written_is_read(tmp_path: Path) -> None:
    state = TrainState({"a.x": torch.arange(3.0), "a.n": torch.tensor(4), "b.x": torch.ones(2, 2)}, {"step": 5})
    write_state(state, tmp_path / "one")
    found = read_state(tmp_path / "one")
    assert found.facts == {"step": 5}
    assert {name: tensor.tolist() for name, tensor in found.part("a").items()} == {"x": [0.0, 1.0, 2.0], "n": 4}


@pytest.mark.parametrize("name", [FACTS_NAME, TENSORS_NAME])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_checkpoint_is_named(name: str, damage: str, tmp_path: Path) -> None:
    write_state(TrainState({"a.x": torch.arange(3.0)}, {"step": 5}), tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if damage == "cut":
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"is not a checkpoint of a training"):
        read_state(tmp_path)


def test_the_first_field_that_differs_is_named() -> None:
    require_same_job({"a": {"b": 1}}, {"a": {"b": 1}})
    with pytest.raises(ConfigError, match=r"^a\.c: the checkpoint was made with None, the job says 2"):
        require_same_job({"a": {"b": 1}, "z": 1}, {"a": {"b": 1, "c": 2}})
