"""A shard labeller as a Ray actor. Knows no other labeller."""

from collections.abc import Mapping, Sequence
from typing import Any

import ray

from batchdet.cluster.metrics import LabellerMetrics
from batchdet.cluster.readers import TaskBlocks
from batchdet.labelling import SHARDS_IN_FLIGHT, Hardware, RunContext, ShardLabeller
from batchdet.records import FailedImage, ImageRef, ShardReport

LABELLER_OPTIONS: dict[str, Any] = {
    # Every retry passes through the driver, which counts attempts and isolates images that kill.
    "max_restarts": 0,
    "max_task_retries": 0,
    "max_concurrency": SHARDS_IN_FLIGHT + 1,
}


@ray.remote
class Labeller:
    """Loads the model in `setup`, then labels shards; a second `label` reads while the first detects."""

    def setup(self, context: RunContext, hardware: Hardware, reads_remotely: bool) -> str:
        """Load the model; returns what computes the detections, and where.

        Raises:
            ModelError, StorageError: it cannot be had on this node.
        """
        source = TaskBlocks(context.job) if reads_remotely else None
        self._labeller = ShardLabeller(context, hardware, source)
        self._metrics = LabellerMetrics()
        return f"{self._labeller.backend} on {hardware.device}"

    def label(self, shard_id: int, poison: Mapping[str, FailedImage] | None = None) -> ShardReport:
        """See `ShardLabeller.label`."""
        report = self._labeller.label(shard_id, poison)
        self._metrics.record(report)
        return report

    def probe(self, refs: Sequence[ImageRef]) -> None:
        """Label images and throw the outcome away: whether the process survives is the answer."""
        self._labeller.detect(refs)
