"""What a labeller carries from shard to shard, and how labellers of one process share its cores and shards."""

import json
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from batchdet import labelling
from batchdet.config import ClusterConfig, JobConfig, load_job
from batchdet.demo.scenes import draw_scenes
from batchdet.demo.shipped import shipped_model
from batchdet.engine.checkpoint import load_detector
from batchdet.engine.detections import Detections
from batchdet.engine.detector import Batch, Detector
from batchdet.errors import ConfigError, ModelError, OutOfMemoryError
from batchdet.labelling import Hardware, InlineRunner, RunContext, ShardLabeller, split_cores
from batchdet.records import ImageRef, LabelledImage, ModelInfo
from batchdet.run import Manner, label_bucket
from batchdet.storage.begun import settle_backend
from batchdet.storage.filesystem import open_store
from batchdet.storage.planning import make_plan
from batchdet.timeline import Timeline
from tests.contract.conftest import Recorder
from tests.storage.made import header, listing


class Cramped:
    """A detector on a device with room for one image at a time."""

    def __init__(self, inner: Detector) -> None:
        self._inner = inner
        self.asked: list[int] = []

    @property
    def info(self) -> ModelInfo:
        return self._inner.info

    @property
    def device(self) -> torch.device:
        return self._inner.device

    @property
    def backend(self) -> str:
        return "torch-cramped/fp32"

    @property
    def batch_images(self) -> int:
        return 4

    def detect(self, batch: Batch) -> Detections:
        self.asked.append(len(batch.sizes))
        if len(batch.sizes) > 1:
            raise OutOfMemoryError("room for one image")
        return self._inner.detect(batch)


@pytest.fixture
def refs(tmp_path: Path) -> list[ImageRef]:
    for place, scene in enumerate(islice(draw_scenes(3, 4), 4)):
        (tmp_path / f"{place}.jpg").write_bytes(scene.data)
    return [ImageRef((tmp_path / f"{place}.jpg").as_uri()) for place in range(4)]


def a_labeller(folder: Path, begun_with: str | None = None, backend: str = "auto") -> ShardLabeller:
    model = {"reference": str(shipped_model()), "backend": backend}
    job = JobConfig.model_validate({"source": str(folder), "output": str(folder / "out"), "model": model})
    output = open_store(job.output, {})
    plan = make_plan(output, header(), listing([]), [], job.plan)
    if begun_with:
        settle_backend(output, plan.run_id, begun_with)
    return ShardLabeller(RunContext(job, plan), Hardware("cpu", 1))


def test_the_wait_for_a_shard_is_counted_from_the_end_of_the_one_before(tmp_path: Path, refs: list[ImageRef]) -> None:
    labeller, timelines = a_labeller(tmp_path), [Timeline(keeps_spans=True) for _ in range(3)]
    for timeline in timelines:
        labeller.detect(refs, timeline)
    labeller.stop()
    assert [timeline.seconds["load"] > 0 for timeline in timelines] == [True, False, False]
    waits = [[span for span in timeline.spans if span.stage == "between_shards"] for timeline in timelines]
    assert [len(found) for found in waits] == [0, 1, 1]
    for before, (wait,), after in zip(timelines, waits[1:], timelines[1:], strict=False):
        assert max(span.end_ns for span in before.spans) <= wait.begin_ns
        assert wait.end_ns <= min(span.begin_ns for span in after.spans if span.stage == "idle")


def test_a_batch_size_that_fits_is_remembered_for_the_next_shard(
    tmp_path: Path, refs: list[ImageRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every shard of a long run begins with the same failures, each of which empties the device's caches."""
    cramped: list[Cramped] = []

    def load(*arguments: Any) -> Cramped:
        cramped.append(Cramped(load_detector(*arguments)))
        return cramped[-1]

    monkeypatch.setattr(labelling, "load_detector", load)
    labeller = a_labeller(tmp_path)
    first, second = (labeller.detect(refs) for _ in range(2))
    labeller.stop()
    assert cramped[0].asked == [4, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert all(isinstance(outcome, LabelledImage) for outcome in (*first, *second))


@pytest.mark.parametrize(
    ("config", "cores", "threads", "labellers"),
    [
        ({}, 1, 1, 1),
        ({}, 2, 1, 2),  # a thread each, as on Ray
        ({}, 16, 2, 8),  # Python's lock would hold sixteen up
        ({"cpus_per_labeller": 2}, 5, 2, 2),  # as many as fit
        ({"cpus_per_labeller": 4}, 2, 4, 1),  # what is asked for, also where it does not fit
        ({"cpus_per_labeller": 0.5}, 2, 1, 2),  # never less than one thread
        ({"labellers": 1}, 4, 4, 1),  # one takes all cores
        ({"labellers": 3}, 4, 1, 3),
        ({"labellers": 3}, 2, 1, 3),
        ({"labellers": 3, "cpus_per_labeller": 2}, 2, 2, 3),  # both asked for
    ],
)
def test_cores_of_one_process(config: dict[str, object], cores: int, threads: int, labellers: int) -> None:
    assert split_cores(ClusterConfig.model_validate(config), cores) == (threads, labellers)


def test_every_labeller_of_a_process_gets_a_shard_before_any_gets_two(tmp_path: Path, refs: list[ImageRef]) -> None:
    """Three labellers of two shards: two are loaded, and each detects one, in a thread of its own."""
    fields = {"source": str(tmp_path / "*.jpg"), "output": str(tmp_path / "out"), "plan.images_per_shard": 2}
    job = load_job(None, fields | {"model.reference": str(shipped_model())})
    assert label_bucket(job, InlineRunner(Hardware("cpu", 1), 3), Recorder(), Manner(profile=True)).num_labelled == 4
    traces = sorted((tmp_path / "out").glob("_profiles/*/shard-*.json"))
    events = [[event for event in json.loads(trace.read_text()) if event["name"] == "detect"] for trace in traces]
    assert [sum(event["args"]["images"] for event in shard) for shard in events] == [2, 2]
    assert len({event["tid"] for shard in events for event in shard}) == 2


def test_a_run_goes_on_in_the_backend_it_was_begun_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`auto` may find another one on the machine that resumes it, and its scores would differ."""
    labeller = a_labeller(tmp_path, f"torch-{torch.__version__}-folded/fp32")
    labeller.stop()
    assert labeller.backend == f"torch-{torch.__version__}-folded/fp32"
    assert not caplog.records


def test_another_version_of_the_backend_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labeller = a_labeller(tmp_path, "torch-0.4-folded/fp32")
    labeller.stop()
    assert f"was begun with torch-0.4-folded/fp32, and this machine has {labeller.backend}" in caplog.text


def test_a_run_is_not_finished_in_another_backend(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"was begun with openvino-1/fp32, and this machine has torch-.*--new-run"):
        a_labeller(tmp_path, "openvino-1/fp32", backend="torch")


@pytest.mark.parametrize(
    ("device", "backend", "refused"),
    [("cuda", "openvino", True), ("cuda", "auto", False), ("cuda", "torch", False), ("cpu", "openvino", False)],
)
def test_a_backend_without_gpus_is_refused_before_anything_is_planned(
    tmp_path: Path, device: str, backend: str, refused: bool
) -> None:
    fields = {"source": str(tmp_path), "output": str(tmp_path), "model.reference": "x", "model.backend": backend}
    runner = InlineRunner(Hardware(device, 1))
    with pytest.raises(ConfigError, match="openvino runs on CPUs only") if refused else nullcontext():
        runner.ready(load_job(None, fields), Recorder())
