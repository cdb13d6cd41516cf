"""What a training learns from, settled when it begins and read back when it goes on. Knows no pixels and no network.

OUTPUT/plan/gold.parquet     rows of `GOLD_SCHEMA`
OUTPUT/plan/pseudo.parquet   rows of `pseudo_labels.SCHEMA`
OUTPUT/plan/plan.json        written last: a plan with it is whole
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from batchdet.errors import NotFoundError
from batchdet.storage.filesystem import Store
from batchdet.storage.parquet import opened, read_rows
from batchdet.training.config import GoldConfig, TrainConfig
from batchdet.training.order import BatchOrder, plan_order
from batchdet.training.pseudo_labels import SCHEMA, row_target
from batchdet.training.state import require_same_job
from batchdet.training.targets import Target, gold_target

FACTS, GOLD, PSEUDO = "plan/plan.json", "plan/gold.parquet", "plan/pseudo.parquet"
_BOXES = pa.list_(pa.list_(pa.float32(), 4))
GOLD_SCHEMA = pa.schema({"image_uri": pa.string(), "boxes": _BOXES, "labels": pa.list_(pa.int32()), "ignored": _BOXES})
"""One row per gold image, in the gold file's order: xyxy pixels, labels of the student's categories, crowds ignored."""


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """Where the rows come from.

    Attributes:
        job: the training as given.
        teacher: its reference with the version that was live; None without a teacher.
        teacher_digest: of that model.
        categories: the student's, in label order.
        policies: run id to the policy its labels were accepted by.
        gold_digest: `sha256:<hex>` of the gold file.
    """

    job: Mapping[str, Any]
    teacher: str | None
    teacher_digest: str | None
    categories: tuple[str, ...]
    policies: Mapping[str, Any] = field(default_factory=dict)
    gold_digest: str | None = None


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """What a training learns from.

    Attributes:
        gold: rows of `GOLD_SCHEMA`; may be empty.
        pseudo: rows of `pseudo_labels.SCHEMA`; may be empty.
    """

    facts: PlanFacts
    gold: pa.Table
    pseudo: pa.Table

    def order(self, config: TrainConfig) -> BatchOrder:
        """Which images each step takes.

        Raises:
            SourceError, ConfigError: as `plan_order`.
        """
        share = config.gold.share if isinstance(config.gold, GoldConfig) else 0.0
        return plan_order(self.gold.num_rows, self.pseudo.num_rows, share, config.length)

    def effective(self, config: TrainConfig) -> TrainConfig:
        """The job with the teacher's version pinned: `promoted.json` may change while a training rests."""
        start = config.start.model_copy(update={"reference": self.facts.teacher})
        return config.model_copy(update={"start": start})

    def row(self, is_gold: bool, index: int) -> dict[str, Any]:
        """The row of one image."""
        table = self.gold if is_gold else self.pseudo
        row: dict[str, Any] = table.slice(index, 1).to_pylist()[0]
        return row

    def uri(self, is_gold: bool, index: int) -> str:
        """The URI of one image."""
        return str((self.gold if is_gold else self.pseudo).column("image_uri")[index].as_py())


def target_of(row: Mapping[str, Any], config: TrainConfig) -> Target:
    """What a picture teaches, from its row of either table."""
    if "band" in row:
        return row_target(row, config.pseudo_labels)
    boxes, ignored = (torch.from_numpy(np.array(row[name], np.float32).reshape(-1, 4)) for name in ("boxes", "ignored"))
    return gold_target(boxes, torch.from_numpy(np.array(row["labels"], np.int64)), ignored)


def gold_table(uris: Sequence[str | None], targets: Sequence[Target]) -> pa.Table:
    """Rows of `GOLD_SCHEMA` for the gold images that are there.

    Args:
        uris: [I], None where an image is missing.
        targets: [I].
    """
    pairs = [(uri, target) for uri, target in zip(uris, targets, strict=True) if uri is not None]
    columns = {
        "image_uri": [uri for uri, _ in pairs],
        "boxes": [target.boxes.tolist() for _, target in pairs],
        "labels": [target.labels.tolist() for _, target in pairs],
        "ignored": [target.ignored.tolist() for _, target in pairs],
    }
    return pa.table(columns, schema=GOLD_SCHEMA)


def write_plan(output: Store, plan: TrainPlan) -> None:
    """Keep a plan.

    Raises:
        StorageError: it cannot be written.
    """
    for name, table in ((GOLD, plan.gold), (PSEUDO, plan.pseudo)):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        output.write_bytes(name, sink.getvalue().to_pybytes())
    output.write_bytes(FACTS, json.dumps(asdict(plan.facts), sort_keys=True).encode())


def read_plan(output: Store) -> TrainPlan | None:
    """What `write_plan` kept; None where there is none.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        facts = PlanFacts(**json.loads(output.read_bytes(FACTS)))
    except NotFoundError:
        return None
    return TrainPlan(
        replace(facts, categories=tuple(facts.categories)), *(_read(output, name) for name in (GOLD, PSEUDO))
    )


def _read(output: Store, name: str) -> pa.Table:
    with opened(io.BytesIO(output.read_bytes(name))) as file:
        return read_rows(file)


def require_same_training(plan: TrainPlan, config: TrainConfig) -> None:
    """Refuse to go on with another job in the folder of one.

    Raises:
        ConfigError: names the first field that differs.
    """
    require_same_job(plan.facts.job, json.loads(config.canonical))


def no_pseudo_labels() -> pa.Table:
    """The table of a training on gold alone."""
    return SCHEMA.empty_table()
