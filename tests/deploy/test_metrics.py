"""What a labelling exports is what it committed, also after a labeller died."""

from collections import Counter

import pyarrow.parquet as pq

from batchdet.timeline import STAGES
from tests.deploy.conftest import Night
from tests.deploy.prometheus import scrape, sums

OWN = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}
"""Labels that Ray adds, beside `otel_scope_*`."""

LABELS = {
    "images_total": {"status"},
    "failures_total": {"failure_stage", "failure_code"},
    "detections_total": set(),
    "read_bytes_total": set(),
    "shards_committed_total": set(),
    "stage_seconds_total": {"stage"},
    "attempts_failed_total": set(),
    "labeller_deaths_total": {"cause"},
    "images_planned": set(),
    "shards_open": set(),
    "labellers_alive": set(),
    "labellers_wanted": set(),
    "shard_stage_seconds_bucket": {"stage", "le"},
    "shard_stage_seconds_count": {"stage"},
    "shard_stage_seconds_sum": {"stage"},
}
"""The metrics and their labels: a contract with dashboards; nothing that grows with images or nights."""


def test_counters_are_the_rows_of_the_run(night: Night) -> None:
    samples = scrape(night.agent)
    images = sums(samples, "ray_batchdet_images_total", "status")
    assert images == {("labelled",): night.row["num_labelled"], ("failed",): night.row["num_failed"]}
    assert sums(samples, "ray_batchdet_detections_total") == {(): night.row["num_detections"]}
    rows = [row for path in night.output.glob("images/**/*.parquet") for row in _rows(path)]
    failures = Counter((row["failure_stage"], row["failure_code"]) for row in rows if row["status"] == "failed")
    assert sums(samples, "ray_batchdet_failures_total", "failure_stage", "failure_code") == failures
    shards = len({row["shard_id"] for row in rows})
    assert sums(samples, "ray_batchdet_shards_committed_total") == {(): shards}
    readable = sum(row["size_bytes"] for row in rows if row["failure_stage"] != "read")
    assert sums(samples, "ray_batchdet_read_bytes_total") == {(): readable}
    assert {stage for (stage,) in sums(samples, "ray_batchdet_stage_seconds_total", "stage")} <= set(STAGES)


def test_a_killed_labeller_is_counted(night: Night) -> None:
    samples = scrape(night.agent)
    said = night.err.count("a labeller died (process ended)")
    assert said >= 1
    assert sums(samples, "ray_batchdet_labeller_deaths_total", "cause") == {("process",): said}


def test_labels_are_few(night: Night) -> None:
    assert night.server is None or night.server.series("ray_batchdet_images_total")
    for sample in scrape(night.agent):
        if sample.name.startswith("ray_batchdet_"):
            own = {label for label in sample.labels if label not in OWN and not label.startswith("otel_scope_")}
            assert own == LABELS[sample.name.removeprefix("ray_batchdet_")], sample


def _rows(path: object) -> list[dict[str, object]]:
    return pq.read_table(path, partitioning=None).to_pylist()
