"""What is written of a profiled run: traces a viewer opens, and a summary that adds up."""

import io
import json
from itertools import islice
from pathlib import Path

import pytest

from batchdet import profiling
from batchdet.config import JobConfig
from batchdet.demo.scenes import draw_scenes
from batchdet.demo.shipped import shipped_model
from batchdet.labelling import Hardware, InlineRunner
from batchdet.profiling import StageTotals, write_profile, write_trace
from batchdet.progress import PlainProgress
from batchdet.records import ShardReport, Span
from batchdet.run import Manner, label_bucket
from batchdet.storage.filesystem import open_store
from batchdet.storage.layout import is_kept

RUN_ID = "20260101T000000Z-00000000"


def a_report(**seconds: float) -> ShardReport:
    return ShardReport(0, 10, 10, 0, 30, {}, seconds, bytes_read=2_000_000)


def a_span(stage: str, begin_ms: int, end_ms: int, process: str = "host:7", thread: int = 1) -> Span:
    return Span(stage, process, thread, f"thread {thread}", begin_ms * 10**6, end_ms * 10**6, 4)


def test_the_line_of_the_labellers_shares_out_their_detecting_threads() -> None:
    totals = StageTotals()
    assert totals.labellers_line() == "labellers: 0% busy, 0% waiting for pixels, 0% between shards"
    totals.add(a_report(detect=4.5, idle=0.25, commit=30.0))
    totals.add(a_report(detect=4.5, idle=0.35, between_shards=0.4))
    assert totals.labellers_line() == "labellers: 90% busy, 6% waiting for pixels, 4% between shards"


def test_the_summary_names_every_stage_with_its_share() -> None:
    totals = StageTotals()
    totals.add(a_report(read=1.0, detect=3.0, forward=2.5, idle=1.0))
    lines = totals.summary(seconds=5.0)
    cells = {line.split()[0]: line.split()[1:] for line in lines[1:-2]}
    assert cells["read"] == ["1.00", "100.00", "25.0%"]
    assert cells["forward"] == ["2.50", "250.00", "62.5%"]
    assert cells["upload"] == ["0.00", "0.00", "0.0%"]
    assert lines[-2] == "10 images in 5.0 s, 2.0 images/s, 2.0 MB read"


def test_traces_of_shards_become_one_that_names_processes_and_threads(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    spans = [a_span("read", 0, 2), a_span("detect", 2, 5, thread=2), a_span("read", 0, 3, "other:7")]
    write_trace(output, RUN_ID, 0, spans)
    write_trace(output, RUN_ID, 1, [a_span("detect", 5, 6, thread=2)])
    lines = write_profile(output, RUN_ID, StageTotals(), 1.0)
    assert lines[-1].endswith(f"_profiles/{RUN_ID}/trace.json")
    events = json.loads((tmp_path / "_profiles" / RUN_ID / "trace.json").read_text())
    work = [event for event in events if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"]) for event in work] == [
        ("read", 0.0, 2000.0),
        ("detect", 2000.0, 3000.0),
        ("read", 0.0, 3000.0),
        ("detect", 5000.0, 1000.0),
    ]
    assert [event["args"] for event in work[::3]] == [{"shard": 0, "images": 4}, {"shard": 1, "images": 4}]
    assert work[0]["pid"] != work[2]["pid"], "two hosts may have the same process id"
    names = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {names[event["pid"], event["tid"]] for event in work} == {"thread 1", "thread 2"}
    assert len(events) == len({json.dumps(event) for event in events}), "a thread is named once"
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4
    assert all(map(is_kept, files)), "an output inside a source is not listed as images"


def test_a_trace_too_long_to_open_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = open_store(str(tmp_path), {})
    monkeypatch.setattr(profiling, "MAX_EVENTS", 5)
    for spans, is_cut in ((3, False), (4, True), (9, True)):  # and two events that name the process and the thread
        write_trace(output, RUN_ID, 0, [a_span("detect", place, place + 1) for place in range(spans)])
        lines = write_profile(output, RUN_ID, StageTotals(), 1.0)
        assert any("trace.json ends after 5 events" in line for line in lines) == is_cut
        assert len(json.loads((tmp_path / "_profiles" / RUN_ID / "trace.json").read_text())) == 5


def test_a_profile_that_cannot_be_written_costs_no_shard_and_no_run(tmp_path: Path) -> None:
    images, output, told = tmp_path / "images", tmp_path / "labels", io.StringIO()
    images.mkdir()
    output.mkdir()
    (output / "_profiles").write_bytes(b"in the way")
    for place, scene in enumerate(islice(draw_scenes(3, 3), 3)):
        (images / f"{place}.jpg").write_bytes(scene.data)
    job = JobConfig.model_validate(
        {"source": str(images), "output": str(output), "model": {"reference": str(shipped_model()), "backend": "torch"}}
    )
    row = label_bucket(job, InlineRunner(Hardware("cpu", 1)), PlainProgress(told), Manner(profile=True))
    assert (row.status, row.num_labelled) == ("complete", 3)
    assert row.images_per_second > 0, "the shard's report must arrive"
    assert "profile not written" in told.getvalue()
    assert "stays open" not in told.getvalue()
