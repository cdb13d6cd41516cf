"""A time line adds up what it was told, whoever told it."""

import threading

import pytest

from batchdet.records import Span
from batchdet.timeline import STAGES, Timeline, now_ns


def test_seconds_are_kept_for_every_stage_and_spans_only_when_asked_for() -> None:
    spans = [Span("read", "host:1", 1, "a", 0, 2 * 10**9), Span("read", "host:2", 1, "a", 0, 10**9)]
    for keeps in (False, True):
        timeline = Timeline(keeps)
        timeline.add(spans)
        assert tuple(timeline.seconds) == STAGES
        assert {stage for stage, seconds in timeline.seconds.items() if seconds} == {"read"}
        assert timeline.seconds["read"] == 3.0
        assert timeline.spans == (tuple(spans) if keeps else ())


def test_a_span_says_where_it_ran_and_ends_with_an_exception() -> None:
    timeline = Timeline(keeps_spans=True)

    def work() -> None:
        with pytest.raises(KeyError), timeline.span("detect", 3):
            raise KeyError

    before = now_ns()
    thread = threading.Thread(target=work, name="detecting")
    thread.start()
    thread.join()
    (span,) = timeline.spans
    assert (span.stage, span.thread_name, span.images) == ("detect", "detecting", 3)
    assert span.thread != threading.get_native_id()
    assert before <= span.begin_ns <= span.end_ns <= now_ns()
    assert timeline.seconds["detect"] == (span.end_ns - span.begin_ns) / 1e9
