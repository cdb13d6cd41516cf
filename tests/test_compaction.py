"""History in few large files: the views answer as before at every moment, whatever is killed."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet.analysis.audit import audit_run
from batchdet.analysis.query import ask_columns
from batchdet.compaction import History, compact, remove
from batchdet.config import PlanConfig, PolicyConfig
from batchdet.errors import OutputError
from batchdet.records import ImageRef
from batchdet.storage.filesystem import Store
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import derivation_of
from batchdet.storage.planning import count_plan
from tests.analysis.outputs import Image, close, commit, open_run, run_id
from tests.histories import (
    OTHER,
    Killed,
    current,
    deleting_night,
    fresh_output,
    fused,
    night,
    plain,
    play_past,
    restore,
    rows_of,
    snapshot,
)
from tests.storage.made import listing

NO_GRACE = timedelta(0)
SMALL_FILES = 12_000
"""Makes shards of a few images, so that several are written."""


def silent(_: str) -> None:
    pass


def past() -> Store:
    output = fresh_output()
    play_past(output)
    return output


def everything(output: Store, history: History, run: Callable[[Store], Store]) -> None:
    """Compact and remove what is superseded."""
    done = compact(run(output), history, silent, SMALL_FILES)
    remove(run(output), done.superseded, NO_GRACE)


def test_current_history_is_one_run_per_policy() -> None:
    output = past()
    before, old = current(output), Ledger(output).run_rows()
    done = compact(output, "current", silent)
    assert [row.policy_digest for row in done.runs] == [old[1].policy_digest, OTHER.digest]
    assert [row.num_listed for row in done.runs] == [8, 3]
    assert all(len(Ledger(output).committed(row.run_id)) == 1 for row in done.runs), "few large files"
    assert done.superseded == tuple(run_id(number) for number in (1, 2, 3, 4))
    assert current(output) == before
    assert {row.run_id for row in old} <= {row.run_id for row in Ledger(output).run_rows()}, "none is removed"
    for row in done.runs:
        audit_run(output, row.run_id).require_passed()
        uris = [image["image_uri"].encode() for image in rows_of(output, "images", row.run_id)]
        assert uris == sorted(uris)


def test_a_second_compaction_finds_nothing_to_do() -> None:
    output = past()
    first = compact(output, "current", silent)
    files = snapshot()
    again = compact(output, "current", silent)
    assert (again.runs, again.superseded) == ((), first.superseded)
    assert snapshot() == files


def test_every_run_gets_a_twin_right_after_it() -> None:
    output = past()
    before = current(output)
    rows = {row.run_id: (rows_of(output, "images", row.run_id), row) for row in Ledger(output).run_rows()}
    done = compact(output, "all", silent)
    assert [row.run_id for row in done.runs] == [f"{run_id(number)[:17]}{number + 1:08x}" for number in (1, 2, 4)]
    assert done.superseded == (run_id(1), run_id(2), run_id(4)), "a run of one file is left alone"
    assert current(output) == before
    for row in done.runs:
        audit_run(output, row.run_id).require_passed()
        images, original = rows[str((derivation_of(row.config) or {})["from"][0])]
        assert [plain(image) for image in rows_of(output, "images", row.run_id)] == [plain(image) for image in images]
        for name in ("num_listed", "num_unchanged", "num_labelled", "num_failed", "num_detections", "started_at"):
            assert getattr(row, name) == getattr(original, name)
    remove(output, done.superseded, NO_GRACE)
    assert current(output) == before
    assert compact(output, "all", silent).runs == ()


def test_deleted_images_stay_in_the_whole_history() -> None:
    output = fresh_output()
    night(output, 1, {f"s3://p/{name}": Image(1) for name in "abcd"})
    deleting_night(output, 2, [f"s3://p/{name}" for name in "abc"])
    before = current(output)
    done = compact(output, "all", silent)
    statuses = [[row["status"] for row in rows_of(output, "images", run.run_id)] for run in done.runs]
    assert statuses == [["labelled"] * 4, ["deleted"] * 3]
    remove(output, done.superseded, NO_GRACE)
    assert current(output) == before


@pytest.mark.parametrize("history", ["current", "all"])
def test_a_kill_before_any_change_changes_no_answer(history: History) -> None:
    output = past()
    before, begun = current(output), snapshot()
    for changes in range(1000):
        restore(begun)
        try:
            everything(output, history, lambda store, left=changes: fused(store, left))  # type: ignore[misc]
        except Killed:
            assert current(output) == before, f"killed after {changes} changes"
            everything(output, history, lambda store: store)
        else:
            break
        assert current(output) == before, f"ended after a kill after {changes} changes"
        left = Ledger(output)
        assert left.open_runs() == []
        for row in left.complete_runs():
            if row.num_labelled + row.num_failed:
                audit_run(output, row.run_id).require_passed()
    assert changes > 10
    assert changes < 999


def test_a_killed_compaction_goes_on_with_its_committed_shards() -> None:
    output = past()
    with pytest.raises(Killed):
        compact(fused(output, 6), "current", silent, SMALL_FILES)
    (begun,) = Ledger(output).open_runs()
    committed = Ledger(output).committed(begun.run_id)
    assert committed
    files = {path: data for path, data in snapshot().items() if f"run_id={begun.run_id}/" in path}
    done = compact(output, "current", silent, SMALL_FILES)
    assert done.runs[0].run_id == begun.run_id
    after = snapshot()
    assert all(after[path] == data for path, data in files.items())


def test_what_was_begun_and_is_not_wanted_any_more_is_given_up() -> None:
    output = past()
    with pytest.raises(Killed):
        compact(fused(output, 6), "current", silent, SMALL_FILES)
    (begun,) = Ledger(output).open_runs()
    compact(output, "current", silent, 10 * SMALL_FILES)
    assert Ledger(output).open_runs() == []
    assert {row.run_id: row.status for row in Ledger(output).run_rows()}[begun.run_id] == "partial"


def test_a_run_that_labels_and_is_open_is_refused() -> None:
    output = past()
    commit(output, open_run(output, 9, {"s3://p/z": "x"}), {}, [])
    with pytest.raises(OutputError, match=rf"run {run_id(9)} of .* is open; finish it"):
        compact(output, "current", silent)


def test_a_stopped_run_that_goes_on_is_refused() -> None:
    """Its rows would have an older run_id than those that were rewritten meanwhile."""
    output = past()
    ledger = Ledger(output)
    ledger.close(ledger.closing_row(open_run(output, 9, {"s3://p/z": "x"}), "partial", 0.0))
    with pytest.raises(OutputError, match=rf"run {run_id(9)} of .* is open"):
        compact(output, "current", silent)


def test_files_wait_for_the_grace_and_the_views_do_not_see_them() -> None:
    output = past()
    before = current(output)
    done = compact(output, "current", silent)
    old = {path: data for path, data in snapshot().items() if run_id(1) in path and "/_plans/" not in path}
    removal = remove(output, done.superseded, timedelta(hours=1))
    assert (removal.deleted, removal.waiting) == ((), done.superseded)
    left = snapshot()
    kept = {path for path in old if "/runs/" not in path}
    assert kept <= left.keys(), "whoever reads them still finds them"
    assert {row.run_id for row in Ledger(output).run_rows()} == {row.run_id for row in done.runs}
    assert current(output) == before
    assert remove(output, compact(output, "current", silent).superseded, NO_GRACE).deleted == done.superseded
    assert not [path for path in snapshot() if any(name in path for name in done.superseded)]
    assert current(output) == before


def test_a_deleted_image_does_not_come_back() -> None:
    """Its rows are older than the row that says so, and go first."""
    output = past()
    done = compact(output, "current", silent)
    begun = snapshot()
    for changes in range(3 * len(done.superseded)):
        restore(begun)
        with pytest.raises(Killed):
            remove(fused(output, changes), done.superseded, NO_GRACE)
        assert "s3://p/b" not in {row["image_uri"] for row in current(output)[0]}


def test_runs_that_hold_a_current_row_are_never_superseded() -> None:
    output = fresh_output()
    night(output, 1, {"s3://p/a": Image(1)})
    night(output, 2, {"s3://p/a": Image(2)})
    deleting_night(output, 3, ["s3://p/a"])
    night(output, 4, {"s3://p/b": Image(2)})
    done = compact(output, "current", silent)
    assert (done.runs, done.superseded) == ((), (run_id(1), run_id(2), run_id(3)))


def test_partial_runs_go_with_the_complete_ones_after_them() -> None:
    output = fresh_output()
    night(output, 1, {"s3://p/a": Image(1), "s3://p/b": Image(1), "s3://p/c": Image(1)})
    ledger = Ledger(output)
    ledger.close(ledger.closing_row(open_run(output, 2, {"s3://p/z": "x"}), "partial", 0.0))
    night(output, 3, {"s3://p/d": Image(1)})
    assert compact(output, "current", silent).superseded == tuple(run_id(number) for number in (1, 2, 3))


def test_the_next_plan_finds_everything_unchanged() -> None:
    output = past()
    images = current(output)[0]
    done = compact(output, "current", silent)
    remove(output, done.superseded, NO_GRACE)
    ledger = Ledger(output)
    known = list(ledger.known_images([row.run_id for row in ledger.complete_runs()]))
    names = ("image_uri", "etag", "size_bytes", "last_modified")
    refs = [ImageRef(*(row[name] for name in names)) for row in images]
    counts, *_ = count_plan(listing(refs), known, PlanConfig())
    assert (counts.num_unchanged, counts.num_failed_retry) == (len(images) - 1, 1)


nights = st.lists(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.one_of(
            st.builds(Image, st.integers(0, 3), st.integers(0, 2)),
            st.just(Image(failure="truncated")),
            st.just(None),
        ),
        min_size=1,
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=12, deadline=None)
@given(nights, st.sampled_from(["current", "all"]), st.booleans())
def test_any_history_answers_as_before(past: list[dict[str, Image | None]], history: History, tiny: bool) -> None:
    output = fresh_output()
    for number, images in enumerate(past):
        there = {f"s3://p/{name}": image for name, image in images.items() if image is not None}
        gone = [f"s3://p/{name}" for name, image in images.items() if image is None]
        night(output, 2 * number, there, policy=OTHER if number % 2 else PolicyConfig())
        deleting_night(output, 2 * number + 1, gone)
    before = current(output)
    done = compact(output, history, silent, 1 if tiny else 1 << 20)
    assert current(output) == before
    remove(output, done.superseded, NO_GRACE)
    assert current(output) == before


def test_duckdb_sees_no_difference(tmp_path: Path) -> None:
    restored = past()
    before = _answers(restored)
    done = compact(restored, "current", silent)
    assert _answers(restored) == before
    remove(restored, done.superseded, NO_GRACE)
    assert _answers(restored) == before


def _answers(output: Store) -> list[list[dict[str, object]]]:
    views = ("current_images", "current_candidates", "current_detections", "failures")
    return [
        ask_columns(output, f"SELECT * EXCLUDE (run_id, shard_id) FROM {view} ORDER BY ALL").to_pylist()
        for view in views
    ]


def test_a_stopped_run_is_not_given_up_by_the_way() -> None:
    output = past()
    plan = open_run(output, 5, dict.fromkeys(["s3://p/k", "s3://p/l", "s3://p/m"], "night 5"))
    commit(output, plan, {}, [0])
    close(output, plan, "partial")
    with pytest.raises(OutputError, match="is open; finish it"):
        compact(output, "current", silent)
    stopped = Ledger(output).stopped_run()
    assert stopped is not None
    assert stopped.run_id == plan.run_id
