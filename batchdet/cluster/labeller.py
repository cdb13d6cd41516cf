"""A shard labeller as a Ray actor, with its metrics. Knows no other labeller."""

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.metrics import Counter, Histogram

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
        self._metrics = _Metrics()
        return f"{self._labeller.backend} on {hardware.device}"

    def label(self, shard_id: int, poison: Mapping[str, FailedImage] | None = None) -> ShardReport:
        """See `ShardLabeller.label`."""
        report = self._labeller.label(shard_id, poison)
        self._metrics.record(report)
        return report

    def probe(self, refs: Sequence[ImageRef]) -> None:
        """Label images and throw the outcome away: whether the process survives is the answer."""
        self._labeller.detect(refs)


class _Metrics:
    """Counters of this process, scraped from its node's Ray metrics agent."""

    def __init__(self) -> None:
        self._images = Counter("batchdet_images", "Images committed", tag_keys=("status",))
        self._detections = Counter("batchdet_detections", "Accepted detections committed")
        self._failures = Counter("batchdet_failures", "Failed images committed", tag_keys=("code",))
        self._seconds = Counter("batchdet_stage_seconds", "Busy seconds by stage", tag_keys=("stage",))
        self._shard_seconds = Histogram(
            "batchdet_shard_stage_seconds",
            "Seconds of each stage of one shard",
            boundaries=[0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000],
            tag_keys=("stage",),
        )

    def record(self, report: ShardReport) -> None:
        for status, count in (("labelled", report.num_labelled), ("failed", report.num_failed)):
            if count:
                self._images.inc(count, {"status": status})
        if report.num_detections:
            self._detections.inc(report.num_detections)
        for code, count in report.failures.items():
            self._failures.inc(count, {"code": code})
        for stage, seconds in report.seconds.items():
            self._shard_seconds.observe(seconds, {"stage": stage})
            if seconds > 0:
                self._seconds.inc(seconds, {"stage": stage})
