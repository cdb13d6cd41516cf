"""Checkpoints of a training in a folder anywhere. Knows bytes and names; what is in them is `state`'s.

OUTPUT/checkpoints/<step>/state.safetensors   written first
OUTPUT/checkpoints/<step>/state.json          written last: a folder with it is whole
"""

import tempfile
from pathlib import Path

from batchdet.storage.filesystem import Store
from batchdet.training.state import FACTS_NAME, TENSORS_NAME, TrainState, read_state, write_state

FOLDER = "checkpoints"


def save_checkpoint(output: Store, state: TrainState, kept: int) -> None:
    """Write a checkpoint, then remove all but the newest.

    Args:
        output: the training's folder.
        state: between two steps.
        kept: checkpoints that stay, at least 1.

    Raises:
        StorageError: it cannot be written.
    """
    folder = f"{FOLDER}/{int(state.facts['step']):08d}"
    with tempfile.TemporaryDirectory(prefix="batchdet-checkpoint-") as scratch:
        write_state(state, Path(scratch))
        for name in (TENSORS_NAME, FACTS_NAME):
            output.write_bytes(f"{folder}/{name}", (Path(scratch) / name).read_bytes())
    for old in _whole(output)[:-kept]:
        # Without its facts it is no checkpoint, however far the removal gets.
        for name in (FACTS_NAME, TENSORS_NAME):
            output.delete(f"{old}/{name}")


def newest_checkpoint(output: Store) -> TrainState | None:
    """The one to go on from; None where there is none.

    Raises:
        ModelError: it is damaged.
        StorageError: it cannot be read.
    """
    whole = _whole(output)
    if not whole:
        return None
    with tempfile.TemporaryDirectory(prefix="batchdet-checkpoint-") as scratch:
        for name in (TENSORS_NAME, FACTS_NAME):
            (Path(scratch) / name).write_bytes(output.read_bytes(f"{whole[-1]}/{name}"))
        return read_state(Path(scratch))


def _whole(output: Store) -> list[str]:
    """Folders of checkpoints, the oldest first."""
    return [folder for folder in output.list_folders(FOLDER) if output.exists(f"{folder}/{FACTS_NAME}")]
