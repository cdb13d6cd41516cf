"""What each step of a training did, as JSON lines beside its checkpoints. Knows no network.

OUTPUT/steps/<first step>.jsonl holds the steps up to a checkpoint and is written before it: a training that goes on
from the checkpoint before writes the same file again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from batchdet.storage.filesystem import Store

FOLDER = "steps"


@dataclass(frozen=True, slots=True)
class StepLine:
    """One step of all workers.

    Attributes:
        step: steps done, this one included.
        num_steps: of the whole training.
        epoch: passes over the images so far.
        losses: by torchvision's name.
        learning_rate: used.
        gradient_norm: before it was clipped.
        images: URIs in the order of the batch.
        skipped: URI to why: a code as of a failed row, or `changed`.
        seconds: from the step before to this one.
    """

    step: int
    num_steps: int
    epoch: float
    losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    images: tuple[str, ...]
    skipped: Mapping[str, str]
    seconds: float

    @property
    def loss(self) -> float:
        """All losses together."""
        return sum(self.losses.values())


@dataclass
class StepLog:
    """Gathers lines until a checkpoint makes them last."""

    output: Store
    lines: list[StepLine] = field(default_factory=list)

    def add(self, line: StepLine) -> None:
        """One more step."""
        self.lines.append(line)

    def write(self) -> None:
        """Write what was gathered since the last time.

        Raises:
            StorageError: it cannot be written.
        """
        if self.lines:
            text = "".join(json.dumps(asdict(line), ensure_ascii=False) + "\n" for line in self.lines)
            self.output.write_bytes(f"{FOLDER}/{self.lines[0].step:08d}.jsonl", text.encode())
            self.lines = []


def read_steps(output: Store) -> list[StepLine]:
    """Every step that was written, in order.

    Raises:
        StorageError: they cannot be read.
    """
    found: dict[int, StepLine] = {}
    for name in output.list(FOLDER):
        for row in output.read_bytes(name).decode().splitlines():
            fields = json.loads(row)
            found[fields["step"]] = StepLine(**fields | {"images": tuple(fields["images"])})
    return [found[step] for step in sorted(found)]
