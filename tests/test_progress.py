"""Progress is a function of what it was told and of a clock."""

import io

from rich.console import Console

from batchdet.progress import LINE_SECONDS, LiveProgress, PlainProgress, Tally, open_progress
from batchdet.records import PlanCounts, ShardReport

COUNTS = PlanCounts(num_listed=1300, num_new=900, num_changed=80, num_failed_retry=20, num_unchanged=300)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def report(shard_id: int, images: int = 100, failures: dict[str, int] | None = None) -> ShardReport:
    failed = failures or {}
    labelled = images - sum(failed.values())
    return ShardReport(
        shard_id=shard_id,
        num_images=images,
        num_labelled=labelled,
        num_empty=0,
        num_detections=3 * labelled,
        failures=failed,
        seconds={},
    )


def plain() -> tuple[PlainProgress, io.StringIO, Clock]:
    clock, stream = Clock(), io.StringIO()
    return PlainProgress(stream, clock), stream, clock


def test_the_pace_and_the_rest_come_from_committed_images() -> None:
    clock = Clock()
    tally = Tally(clock)
    tally.plan(COUNTS, images_done=400)
    assert tally.seconds_left is None
    clock.now += 20
    tally.commit(report(5, 200))
    assert tally.done == 600
    assert tally.seconds_left == 40.0
    assert "600 of 1,000 images (60%) · 10.0 images/s · ETA 0:00:40 · 600 detections" in tally.line()


def test_a_second_run_is_counted_by_itself() -> None:
    progress, stream, _ = plain()
    progress.listing(1300)
    for _ in range(2):
        progress.planned("R", COUNTS, 0)
        progress.shard_committed(report(0, 1000, {"decode:truncated": 2}))
    assert stream.getvalue().count("1,000 of 1,000 images (100%)") == 2
    assert stream.getvalue().count("failed 2 (decode:truncated 2)") == 2
    assert stream.getvalue().count("listing: 1,300 keys") == 1


def test_failures_are_told_by_code_and_labellers_by_number() -> None:
    clock = Clock()
    tally = Tally(clock)
    tally.plan(COUNTS, 0)
    tally.alive, tally.wanted = 2, 3
    tally.commit(report(0, 100, {"decode:truncated": 2, "read:not_found": 1}))
    tally.commit(report(1, 100, {"decode:truncated": 1}))
    assert "failed 4 (decode:truncated 3, read:not_found 1) · labellers 2 of 3" in tally.line()


def test_an_empty_plan_is_done() -> None:
    tally = Tally(Clock())
    tally.plan(PlanCounts(0, 0, 0, 0, 0), 0)
    assert tally.line().startswith("0 of 0 images (100%)")


def test_plain_lines_come_at_most_every_ten_seconds() -> None:
    progress, stream, clock = plain()
    for second in range(25):
        progress.listing(1000 * (second + 1))
        clock.now += 1
    assert stream.getvalue().splitlines() == [
        "listing: 11,000 keys · 1,100 keys/s",
        "listing: 21,000 keys · 1,050 keys/s",
    ]


def test_plain_commits_are_told_in_time_and_the_last_at_once() -> None:
    progress, stream, clock = plain()
    progress.planned("R", COUNTS, 0)
    for shard_id in range(10):
        clock.now += 3
        progress.shard_committed(report(shard_id))
    lines = stream.getvalue().splitlines()
    assert lines[0] == (
        "run R: 1,300 images listed, 1,000 to label (900 new, 80 changed, 20 failed before, 0 stale), 300 unchanged"
    )
    assert [line.split(" images")[0] for line in lines[1:]] == ["400 of 1,000", "800 of 1,000", "1,000 of 1,000"]
    assert LINE_SECONDS == 10.0


def test_a_resumed_run_says_what_is_done() -> None:
    progress, stream, _ = plain()
    progress.planned("R", COUNTS, 400)
    assert stream.getvalue().endswith("; 400 of them were committed before\n")


def test_a_lost_labeller_and_a_log_line_are_told_at_once() -> None:
    progress, stream, _ = plain()
    progress.labellers(1, 2)
    progress.labellers(2, 2)
    progress.labellers(1, 2)
    progress.log("the cluster has no authentication")
    assert stream.getvalue().splitlines() == [
        "labellers: 2 of 2",
        "labellers: 1 of 2",
        "the cluster has no authentication",
    ]


def picture(progress: LiveProgress) -> str:
    console = Console(file=io.StringIO(), width=150)
    with console.capture() as captured:
        console.print(progress.picture())
    return captured.get()


def test_a_terminal_shows_listing_then_the_bar() -> None:
    clock, stream = Clock(), io.StringIO()
    with LiveProgress(Console(file=stream, width=150, force_terminal=True), clock) as progress:
        progress.listing(50_000)
        clock.now += 10
        progress.listing(100_000)
        assert "listing: 100,000 keys · 10,000 keys/s" in picture(progress)
        progress.planned("R", COUNTS, 0)
        progress.labellers(2, 2)
        clock.now += 10
        progress.shard_committed(report(0, 500))
        progress.log("said aloud")
        shown = picture(progress)
    assert "500 of 1,000 images (50%) · 50.0 images/s · ETA 0:00:10" in shown
    assert "labellers 2 of 2" in shown
    assert "━" in shown
    assert "said aloud" in stream.getvalue()


def test_markup_in_a_uri_is_shown_as_it_is() -> None:
    stream = io.StringIO()
    with LiveProgress(Console(file=stream, width=150, force_terminal=True), Clock()) as progress:
        progress.log("s3://b/[red]a[/red].jpg")
    assert "[red]a[/red]" in stream.getvalue()


def test_a_pipe_gets_plain_lines() -> None:
    with open_progress(io.StringIO()) as progress:
        assert isinstance(progress, PlainProgress)


def test_labellers_are_told_once_however_often_they_are_counted() -> None:
    progress, stream, _ = plain()
    for _ in range(3):
        progress.labellers(2, 2)
    assert stream.getvalue() == "labellers: 2 of 2\n"
