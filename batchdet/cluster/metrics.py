"""A run on Ray as metrics that Prometheus scrapes. Knows reports and deaths, not how they came about.

Ray prefixes every name with `ray_`, ends a counter's with `_total`, and adds the node's address and the process. The
agent of a node exports what its processes told it, a counter also after they ended. The driver counts, since Ray ends a
labeller without hearing its last numbers; labellers tell only how long their stages take, so that nodes can be
compared. No label grows with images or nights: neither names nor run ids are labels.
"""

from ray.util.metrics import Counter, Gauge, Histogram

from batchdet.progress import Progress
from batchdet.records import PlanCounts, ShardReport

SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]
"""Upper bounds of the histogram's buckets."""


class MeteredProgress:
    """Passes progress on, and counts it together with what only the driver sees.

    Args:
        progress: told everything a person is told.
        num_planned: images of the run's plan.
        num_open: shards to be committed from now on.
    """

    def __init__(self, progress: Progress, num_planned: int, num_open: int) -> None:
        self._progress = progress
        self._num_planned = num_planned
        self._num_open = num_open
        self._images = Counter("batchdet_images", "Images committed, by status", ("status",))
        self._failures = Counter("batchdet_failures", "Images committed as failed", ("failure_stage", "failure_code"))
        self._detections = Counter("batchdet_detections", "Accepted detections committed")
        self._bytes = Counter("batchdet_read_bytes", "Bytes of the images read for committed shards")
        self._shards = Counter("batchdet_shards_committed", "Shards committed")
        self._seconds = Counter("batchdet_stage_seconds", "Seconds of committed shards, by stage", ("stage",))
        self._attempts = Counter("batchdet_attempts_failed", "Times a shard was taken from its labeller uncommitted")
        self._deaths = Counter("batchdet_labeller_deaths", "Labellers that died, by what ended", ("cause",))
        self._planned = Gauge("batchdet_images_planned", "Images of the plan of the run that goes on")
        self._open = Gauge("batchdet_shards_open", "Shards not committed yet of the run that goes on")
        self._alive = Gauge("batchdet_labellers_alive", "Labellers that have loaded their model")
        self._wanted = Gauge("batchdet_labellers_wanted", "Labellers that have work and fit the cluster")
        self._tell_run()

    def listing(self, keys: int) -> None:
        """See `Progress`."""
        self._progress.listing(keys)

    def planned(self, run_id: str, counts: PlanCounts, images_done: int) -> None:
        """See `Progress`."""
        self._progress.planned(run_id, counts, images_done)

    def labellers(self, alive: int, wanted: int) -> None:
        """See `Progress`."""
        self._alive.set(alive)
        self._wanted.set(wanted)
        self._progress.labellers(alive, wanted)

    def shard_committed(self, report: ShardReport) -> None:
        """See `Progress`."""
        self._num_open -= 1
        self._tell_run()
        self._shards.inc()
        for status, count in (("labelled", report.num_labelled), ("failed", report.num_failed)):
            _add(self._images, count, status=status)
        for code, count in report.failures.items():
            stage, _, name = code.partition(":")
            _add(self._failures, count, failure_stage=stage, failure_code=name)
        _add(self._detections, report.num_detections)
        _add(self._bytes, report.bytes_read)
        for stage, seconds in report.seconds.items():
            _add(self._seconds, seconds, stage=stage)
        self._progress.shard_committed(report)

    def log(self, line: str) -> None:
        """See `Progress`."""
        self._progress.log(line)

    def attempt_failed(self) -> None:
        """A shard was taken from its labeller uncommitted."""
        self._attempts.inc()

    def labeller_died(self, lost_node: bool) -> None:
        """A labeller is gone: with its node, or by itself."""
        self._deaths.inc(1, {"cause": "node" if lost_node else "process"})

    def _tell_run(self) -> None:
        self._planned.set(self._num_planned)
        self._open.set(self._num_open)


class LabellerMetrics:
    """How long the stages of a shard take on this node."""

    def __init__(self) -> None:
        self._seconds = Histogram("batchdet_shard_stage_seconds", "Seconds of a shard, by stage", SECONDS, ("stage",))

    def record(self, report: ShardReport) -> None:
        """One more shard."""
        for stage, seconds in report.seconds.items():
            self._seconds.observe(seconds, {"stage": stage})


def _add(counter: Counter, count: float, **tags: str) -> None:
    # Ray refuses to count nothing.
    if count > 0:
        counter.inc(count, tags)
