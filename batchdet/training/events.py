"""Numbers of steps as a file that TensorBoard reads. Knows no training and no storage.

Each file is made whole in memory, so that it may lie wherever a checkpoint may.
"""

import importlib.util
import io
from collections.abc import Mapping, Sequence

from batchdet.errors import ConfigError

EVENTS_NAME = "events.out.tfevents"
"""TensorBoard takes files with this in their name, in the order of their names."""


def require_tensorboard() -> None:
    """Say so before any work is done for files that cannot be written.

    Raises:
        ConfigError: tensorboard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("tensorboard: event files need a package of it: pip install 'batchdet[tensorboard]'")


def event_file(steps: Sequence[tuple[int, Mapping[str, float], float]], now: float) -> bytes:
    """Steps in the record format of TensorFlow's event files.

    Args:
        steps: number, values by name, and seconds it took, of each; in order.
        now: when the last one was done, in seconds since 1970.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    data = io.BytesIO()
    writer = RecordWriter(data)
    done = now - sum(seconds for _, _, seconds in steps)
    writer.write(Event(wall_time=done, file_version="brain.Event:2").SerializeToString())
    for step, numbers, seconds in steps:
        done += seconds
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        writer.write(Event(wall_time=done, step=step, summary=Summary(value=values)).SerializeToString())
    return data.getvalue()
