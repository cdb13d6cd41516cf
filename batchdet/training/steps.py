"""What each step of a training did, as JSON lines beside its checkpoints. Knows no network.

OUTPUT/steps/<first step>.jsonl                         the steps up to a checkpoint
OUTPUT/tensorboard/events.out.tfevents.<first step>     the same for TensorBoard, where the job asks for it

They are written before their checkpoint: a training that goes on from the one before writes the same files again.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from batchdet.storage.filesystem import Store
from batchdet.training.events import EVENTS_NAME, event_file

FOLDER, EVENTS_FOLDER = "steps", "tensorboard"


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
        map: on held-out gold after this step, a fraction; None where it was not examined.
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
    map: float | None = None

    @property
    def loss(self) -> float:
        """All losses together."""
        return sum(self.losses.values())

    @property
    def numbers(self) -> dict[str, float]:
        """Everything of the step that is drawn over the steps, by name."""
        named = {f"loss/{name}": value for name, value in self.losses.items()}
        named |= {"loss/all": self.loss, "learning_rate": self.learning_rate, "gradient_norm": self.gradient_norm}
        if self.seconds > 0:
            named["images_per_second"] = len(self.images) / self.seconds
        return named if self.map is None else named | {"map": self.map}


@dataclass
class StepLog:
    """Gathers lines until a checkpoint makes them last."""

    output: Store
    lines: list[StepLine] = field(default_factory=list)
    with_events: bool = False

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
            first = f"{self.lines[0].step:08d}"
            self.output.write_bytes(f"{FOLDER}/{first}.jsonl", text.encode())
            if self.with_events:
                events = event_file([(line.step, line.numbers, line.seconds) for line in self.lines], time.time())
                self.output.write_bytes(f"{EVENTS_FOLDER}/{EVENTS_NAME}.{first}", events)
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
