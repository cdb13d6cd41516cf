"""Queries over the views: what they answer, what they refuse, and what they cannot reach."""

from pathlib import Path
from typing import Any

import pytest

from batchdet.analysis.query import ask, print_views
from batchdet.analysis.relations import Dialect
from batchdet.errors import ConfigError, OutputError, StorageError
from batchdet.storage.filesystem import Store, open_store
from tests.analysis.outputs import Image, close, commit, open_run, whole_run
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import Bucket

HOSTILE = "out [1]*'; DROP TABLE x; -- \"é{}?"


@pytest.fixture(params=["plain", HOSTILE])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(str(tmp_path / request.param), {})


def rows(output: Store, sql: str) -> list[dict[str, Any]]:
    with ask(output, sql) as answer:
        return list(answer.records())


def test_current_views_hold_the_latest_row_of_each_image(output: Store) -> None:
    whole_run(output, 1, {"s3://b/a": Image(2, 1), "s3://b/b": Image(failure="truncated"), "s3://b/c": Image()})
    whole_run(output, 2, {"s3://b/a": Image(failure="corrupt"), "s3://b/b": Image(1)}, etag="changed")
    images = rows(output, "SELECT image_uri, status, run_id FROM current_images ORDER BY 1")
    assert [(row["image_uri"], row["status"], row["run_id"][-1]) for row in images] == [
        ("s3://b/a", "failed", "2"),
        ("s3://b/b", "labelled", "2"),
        ("s3://b/c", "labelled", "1"),
    ]
    assert rows(output, "SELECT image_uri, category, accepted FROM current_candidates") == [
        {"image_uri": "s3://b/b", "category": "cat", "accepted": True}
    ]
    assert [row["failure_code"] for row in rows(output, "SELECT * FROM failures")] == ["corrupt"]


def test_candidates_are_all_stored_and_detections_the_accepted(output: Store) -> None:
    whole_run(output, 1, {"s3://b/a": Image(2, 3)})
    assert rows(output, "SELECT count(*) n FROM current_candidates") == [{"n": 5}]
    assert rows(output, "SELECT count(*) n FROM current_detections") == [{"n": 2}]
    assert rows(output, "SELECT DISTINCT category FROM current_detections ORDER BY 1") == [
        {"category": "cat"},
        {"category": "dog"},
    ]


def test_an_open_and_a_partial_run_are_not_seen(output: Store) -> None:
    whole_run(output, 1, {"s3://b/a": Image(1)})
    partial = open_run(output, 2, {"s3://b/a": "2", "s3://b/b": "2", "s3://b/c": "2"})
    commit(output, partial, {}, [0])
    close(output, partial, "partial")
    commit(output, open_run(output, 3, {"s3://b/a": "3"}), {}, [0])
    assert rows(output, "SELECT image_uri, num_detections FROM current_images") == [
        {"image_uri": "s3://b/a", "num_detections": 1}
    ]
    assert rows(output, "SELECT status FROM runs ORDER BY run_id") == [{"status": "complete"}, {"status": "partial"}]
    assert rows(output, "SELECT count(*) n FROM all_images") == [{"n": 1}]


def test_an_empty_run_has_empty_views(output: Store) -> None:
    close(output, open_run(output, 1, {}))
    for view in ("current_images", "current_detections", "current_candidates", "failures"):
        assert rows(output, f"SELECT count(*) n FROM {view}") == [{"n": 0}], view
    assert rows(output, "SELECT num_listed FROM runs") == [{"num_listed": 0}]


def test_an_output_without_detections_files(output: Store) -> None:
    whole_run(output, 1, {"s3://b/a": Image(1)})
    for name in list(output.list(f"detections/{next(iter(output.list_folders('detections'))).split('/')[-1]}")):
        output.fs.rm(output.path(name))
    assert rows(output, "SELECT count(*) n FROM current_detections") == [{"n": 0}]
    assert "WHERE 1 = 0" in print_views(output, Dialect.DUCKDB)


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT selct", "selct"),
        ("SELECT CASE WHEN range < 900000 THEN '1' ELSE 'x' END::INT FROM range(1000000)", "Could not convert"),
        ("", "the statement is empty"),
        (" ;; -- nothing", "the statement is empty"),
        ("SELECT 1; SELECT 2", "expected one statement, got 2"),
        ("CREATE TABLE x AS SELECT 1; SELECT * FROM x", "expected one statement, got 2"),
        ("SELECT * FROM nowhere", "nowhere"),
        ("SELECT image_uri::int FROM all_images", "Could not convert"),
        ("SELECT * FROM read_text('/etc/hostname')", "disabled"),
        ("SELECT * FROM read_csv('/etc/passwd')", "disabled"),
        ("COPY all_images TO 'stolen.csv'", "disabled"),
        ("COPY all_images TO 'batchdet-output://output/x.csv'", ""),
        ("COPY all_images TO 'batchdet-output://output/../x.csv'", ""),
        ("ATTACH 'x.db'", "disabled"),
        ("INSTALL httpfs", "disabled"),
        ("SET enable_external_access = true", "locked"),
        ("EXPORT DATABASE 'x'", "disabled"),
        ("SELECT * FROM output", "output"),
    ],
)
def test_a_refused_statement_is_one_line_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    output = open_store(str(tmp_path / "out"), {})
    whole_run(output, 1, {"s3://b/a": Image(1)})
    (tmp_path / "secret").write_text("secret")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        rows(output, sql)
    assert str(caught.value).startswith("SQL: ")
    assert "\n" not in str(caught.value)
    assert says in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_no_run_is_said_in_one_line(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    with pytest.raises(OutputError, match="no runs here"):
        rows(output, "SELECT 1")
    plan = open_run(output, 1, {"s3://b/a": "e"})
    with pytest.raises(OutputError, match=plan.run_id):
        rows(output, "SELECT 1")


def test_a_file_that_cannot_be_read_is_a_storage_error(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    output = open_store(f"s3://{faulty_bucket.name}/out", {})
    whole_run(output, 1, {"s3://b/a": Image(1)})
    faults.add(Fault("detections/run_id", "status", status=403, code="AccessDenied", method="GET"))
    with pytest.raises(StorageError, match="detections/"):
        rows(output, "SELECT * FROM all_detections")


def test_no_file_outside_the_committed_ones_exists(tmp_path: Path) -> None:
    output = open_store(str(tmp_path / "out"), {})
    plan = whole_run(output, 1, {"s3://b/a": Image(1)})
    (tmp_path / "secret").write_text("secret")
    for path in ("../secret", f"_plans/{plan.run_id}/plan.json", "*/secret"):
        try:
            found = rows(output, f"SELECT * FROM read_text('batchdet-output://output/{path}')")
        except ConfigError:
            continue  # DuckDB before 2.0 refuses `..` itself
        assert found == []


def test_values_of_every_type_come_back(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), {})
    whole_run(output, 1, {"s3://b/a": Image(1)})
    (row,) = rows(output, "SELECT *, 1 AS a, 2 AS a FROM runs")
    assert row["categories"] == ["__background__", "cat", "dog", "it's"]
    assert row["started_at"].isoformat() == "2026-03-02T12:00:00+00:00"
    assert (row["a"], row["a_1"]) == (1, 2)


def test_a_query_reads_s3_without_an_extension(bucket: Bucket) -> None:
    output = open_store(f"s3://{bucket.name}/it's out", {})
    whole_run(output, 1, {"s3://b/a": Image(2, 1), "s3://b/b": Image(failure="empty")})
    assert rows(output, "SELECT category, count(*) n FROM current_detections GROUP BY 1 ORDER BY 1") == [
        {"category": "cat", "n": 1},
        {"category": "dog", "n": 1},
    ]
