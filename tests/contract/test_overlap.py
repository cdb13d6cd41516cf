"""A labeller works on two shards at once: shown by requests that wait for each other, on both runners."""

import json
from pathlib import Path
from typing import Any

import pytest

from batchdet.cluster.driver import RayRunner
from batchdet.config import load_job
from batchdet.demo.shipped import shipped_model
from batchdet.labelling import Hardware, InlineRunner
from batchdet.run import Manner, Runner, label_bucket
from tests.contract.conftest import Recorder
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import Bucket

PER_SHARD = 4


@pytest.fixture(params=["inline", "ray"])
def runner(request: pytest.FixtureRequest) -> Runner:
    if request.param == "inline":
        return InlineRunner(Hardware("cpu", 1))
    request.getfixturevalue("ray_cluster")
    return RayRunner("local")


def put_shards(bucket: Bucket, pictures: Path, held: tuple[int, ...] = ()) -> None:
    """Three shards of pictures anybody may read; the names of those at the places held say so."""
    paths = sorted(pictures.glob("scene-*"))[: 3 * PER_SHARD]
    names = [f"photos/{place:02d}{'-held' * (place in held)}{path.suffix}" for place, path in enumerate(paths)]
    anybody = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{bucket.name}/*"}
    policy = {"Version": "2012-10-17", "Statement": [anybody]}
    bucket.client.put_bucket_policy(Bucket=bucket.name, Policy=json.dumps(policy))
    bucket.put_all({name: path.read_bytes() for name, path in zip(names, paths, strict=True)})


def run_on(bucket: Bucket, runner: Runner, endpoint: str) -> Recorder:
    """Label with one labeller that reads one image at a time, profiled."""
    # The cluster may have been started before this test's credentials were in the environment.
    reach = {"endpoint_url": endpoint, "anon": True}
    fields: dict[str, Any] = {
        "source": f"{bucket.uri}/photos/",
        "output": f"{bucket.uri}/labels",
        "model.reference": str(shipped_model()),
        "plan.images_per_shard": PER_SHARD,
        "reading.block_images": 1,
        "cluster.labellers": 1,
        "storage.source": reach,
        "storage.output": reach,
    }
    progress = Recorder()
    label_bucket(load_job(None, fields), runner, progress, Manner(profile=True))
    return progress


def test_two_shards_are_worked_on_at_once_and_the_profile_shows_it(
    faulty_bucket: Bucket, faults: FaultProxy, pictures: Path, runner: Runner
) -> None:
    """The last image of the first shard is not given before the first of the second is asked for; and the first upload
    does not end before the next shard's detections are there to be uploaded. Without overlap neither ever happens.
    """
    put_shards(faulty_bucket, pictures, held=(PER_SHARD - 1, PER_SHARD))
    reads = faults.add(Fault("-held", "gather", times=2, method="GET", count=2))
    uploads = faults.add(Fault("labels/detections/", "gather", times=2, method="PUT", count=2))
    progress = run_on(faulty_bucket, runner, faults.endpoint)
    assert (reads.seen, uploads.seen) == (2, 2)
    assert [(report.num_images, report.num_failed) for report in progress.reports] == [(PER_SHARD, 0)] * 3
    (trace,) = [key for key in faulty_bucket.keys("labels/_profiles/") if key.endswith("/trace.json")]
    work = [event for event in json.loads(faulty_bucket.get(trace)) if event["ph"] == "X"]
    for stage in ("read", "decode", "detect", "copy", "forward", "post_filter", "commit", "encode", "upload"):
        images = [event["args"]["images"] for event in work if event["name"] == stage]
        assert sum(images) == 3 * PER_SHARD, stage
    assert {event["args"]["shard"] for event in work} == {0, 1, 2}
    assert any(line.startswith("labellers: ") and "waiting for pixels" in line for line in progress.lines)
    assert any(line.endswith("trace.json") for line in progress.lines)
