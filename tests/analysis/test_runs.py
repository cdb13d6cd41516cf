"""Runs are listed newest first, open ones among them."""

from pathlib import Path

import pytest

from batchdet.analysis.runs import OpenRun, list_runs
from batchdet.errors import OutputError
from batchdet.storage.filesystem import open_store
from tests.analysis.outputs import Image, close, commit, open_run, run_id, whole_run


def test_newest_first_with_what_is_open(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    whole_run(output, 1, {"s3://b/a": Image(1)})
    commit(output, open_run(output, 2, {f"s3://b/{name}": "x" for name in "bcdef"}), {}, [0, 2])
    partial = open_run(output, 3, {"s3://b/z": "x"})
    close(output, partial, "partial")
    found = list_runs(output)
    assert [(run.run_id, run.status) for run in found] == [
        (run_id(3), "partial"),
        (run_id(2), "open"),
        (run_id(1), "complete"),
    ]
    unfinished = found[1]
    assert isinstance(unfinished, OpenRun)
    assert (unfinished.shards_committed, unfinished.shards_total) == (2, 3)
    assert (unfinished.num_committed, unfinished.num_planned, unfinished.num_listed) == (3, 5, 5)


def test_no_runs_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no runs here"):
        list_runs(open_store(str(tmp_path / "nowhere"), {}))
