"""The doors: flags, exit codes, where output goes, and what is pinned."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from batchdet import __version__, errors
from batchdet.cli import analysis
from batchdet.cli.main import app, main
from batchdet.storage.filesystem import open_store
from tests.analysis.outputs import Image, commit, open_run, run_id, whole_run

SURFACE = {
    "audit": ["--json", "--run", "--set", "OUTPUT"],
    "calibrate": [
        "--gold",
        "--images",
        "--json",
        "--min-objects",
        "--model",
        "--output",
        "--precision",
        "--ray",
        "--set",
        "--to",
    ],
    "compact": ["--file-mib", "--grace-hours", "--history", "--json", "--remove", "--set", "--steal-lease", "OUTPUT"],
    "demo": ["--dir", "--json", "--retrain"],
    "diff": ["--alarms", "--json", "--set", "--to", "OUTPUT", "RUN_A", "RUN_B"],
    "doctor": ["--json", "--output", "--ray", "--set", "--source"],
    "evaluate": ["--gold", "--images", "--json", "--model", "--output", "--ray", "--set", "--to"],
    "label": [
        "--json",
        "--max-hours",
        "--model",
        "--new-run",
        "--no-delete",
        "--output",
        "--policy",
        "--profile",
        "--ray",
        "--set",
        "--source",
        "--steal-lease",
        "[JOB.yaml]",
    ],
    "models import": ["--json", "--model", "--set", "REGISTRY/NAME[@VERSION]"],
    "models list": ["--json", "--set", "[REGISTRY]"],
    "models promote": [
        "--category-tolerance",
        "--gold",
        "--images",
        "--json",
        "--min-objects",
        "--no-gate",
        "--output",
        "--ray",
        "--set",
        "--tolerance",
        "REGISTRY/NAME[@VERSION]",
    ],
    "models rollback": ["--json", "--set", "REGISTRY/NAME"],
    "models show": ["--json", "--set", "REGISTRY/NAME[@VERSION]"],
    "nightly": ["--json", "--night", "--ray", "--set", "--steal-lease", "NIGHTLY.yaml"],
    "plan": ["--json", "--model", "--no-delete", "--output", "--policy", "--set", "--source", "[JOB.yaml]"],
    "publish": ["--format", "--json", "--set", "OUTPUT"],
    "query": ["--json", "--set", "OUTPUT", "SQL"],
    "refilter": ["--json", "--policy", "--set", "--steal-lease", "OUTPUT"],
    "retrain": [
        "--gold",
        "--held-out",
        "--held-out-images",
        "--images",
        "--json",
        "--labels",
        "--model",
        "--output",
        "--ray",
        "--registry",
        "--set",
        "--steps",
        "[TRAIN.yaml]",
    ],
    "runs": ["--json", "--set", "OUTPUT"],
    "sql": ["--dialect", "--json", "--set", "OUTPUT"],
}
"""Every command and what it takes: public, change it only by adding."""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out put"
    store = open_store(str(folder), {})
    whole_run(store, 1, {"s3://b/a": Image(2, 1), "s3://b/b": Image(failure="truncated"), "s3://b/c\td": Image()})
    return folder


def surface(command: Any, path: str = "") -> Iterator[tuple[str, list[str]]]:
    children = getattr(command, "commands", None)
    if children is None:
        names = [param.metavar if param.param_type_name == "argument" else param.opts[0] for param in command.params]
        yield path.strip(), sorted(names)
        return
    for name, child in children.items():
        yield from surface(child, f"{path} {name}")


def test_the_surface_is_pinned() -> None:
    assert dict(surface(typer.main.get_command(app))) == SURFACE


def test_every_flag_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in SURFACE:
        assert main([*name.split(), "--help"]) == 0
        assert "error" not in capsys.readouterr().err
    command = typer.main.get_command(app)
    for child in command.commands.values():  # type: ignore[attr-defined]
        for param in getattr(child, "params", []):
            assert getattr(param, "help", None), f"{child.name} {param.name}"


def test_runs(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit(open_store(str(output), {}), open_run(open_store(str(output), {}), 2, {"s3://b/z": "x"}), {}, [])
    assert main(["runs", str(output)]) == 0
    header, newest, oldest = capsys.readouterr().out.splitlines()
    assert header.split("\t")[:3] == ["run_id", "status", "images"]
    assert newest.split("\t")[:2] == [run_id(2), "open: 0 of 1 shards"]
    assert oldest.split("\t")[:8] == [run_id(1), "complete", "3", "2", "1", "1", "0", "2"]
    assert main(["runs", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["status"] for run in found] == ["open", "complete"]
    assert found[1]["categories"][0] == "__background__"


def test_query(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    statement = "SELECT image_uri, num_detections n, labelled_at FROM current_images ORDER BY 1"
    assert main(["query", str(output), statement, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"image_uri": "s3://b/a", "n": 2, "labelled_at": "2026-03-02T12:00:00+00:00"},
        {"image_uri": "s3://b/b", "n": None, "labelled_at": "2026-03-02T12:00:00+00:00"},
        {"image_uri": "s3://b/c\td", "n": 0, "labelled_at": "2026-03-02T12:00:00+00:00"},
    ]
    assert main(["query", str(output), statement]) == 0
    assert capsys.readouterr().out.splitlines()[3] == "s3://b/c\\td\t0\t2026-03-02 12:00:00+00:00"
    assert main(["query", str(output), "SELECT 1 a WHERE false", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["query", str(output), "SELECT 'nan'::double a, [1.5, NULL] b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"a": None, "b": [1.5, None]}]


def test_audit(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(output), "--json"]) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert (receipt["passed"], receipt["num_listed"], receipt["num_failed"]) == (True, 3, 1)
    next(output.glob("images/*/shard-00000.parquet")).unlink()
    assert main(["audit", str(output), "--run", run_id(1)]) == 3
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"error: run {run_id(1)}: shard files are the plan's: ")
    assert "FAILED\tshard files are the plan's" in captured.out


def test_diff(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(str(output), {})
    whole_run(store, 2, {"s3://b/a": Image(failure="corrupt"), "s3://b/d": Image(1)}, etag="other")
    compared = ["diff", str(output), run_id(1), run_id(2)]
    assert main([*compared, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["images"]["newly_failed"], summary["changes"]["added"], summary["alarms"]) == (1, 1, None)
    assert main([*compared, "--to", str(tmp_path / "night"), "--set", "alarms.min_images=2"]) == 3
    captured = capsys.readouterr()
    assert captured.err == ("error: 1 of 2 images failed that had not failed before: 50.0%, 5.0% is allowed\n")
    assert "newly failed\t1" in captured.out
    assert "max_failure_rate\t1 of 2 images failed" in captured.out
    written = json.loads((tmp_path / "night" / "summary.json").read_text())
    assert [alarm["name"] for alarm in written["alarms"]] == ["max_failure_rate"]
    assert {**written, "alarms": None} == summary
    (tmp_path / "alarms.yaml").write_text("max_failure_rate: 0.6\nmin_images: 2\n")
    assert main([*compared, "--alarms", str(tmp_path / "alarms.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["alarms"] == []


def test_refilter(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refilter", str(output), "--set", "policy.score_threshold=0.8", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["num_listed"], row["num_detections"], json.loads(row["policy"])["score_threshold"]) == (3, 1, 0.8)
    file = tmp_path / "policy.yaml"
    file.write_text("score_threshold: 0.1\n")
    assert main(["refilter", str(output), "--policy", str(file), "--set", "policy.max_detections=2"]) == 0
    assert "num_detections\t2" in capsys.readouterr().out
    assert main(["audit", str(output)]) == 0


def test_compact(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compact", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert ([row["num_listed"] for row in found["runs"]], found["superseded"]) == ([3], [run_id(1)])
    assert main(["compact", str(output), "--remove", "--grace-hours", "0"]) == 0
    assert capsys.readouterr().out.splitlines() == ["state\trun", f"deleted\t{run_id(1)}"]
    assert main(["audit", str(output)]) == 0


def test_sql(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dialect in ("duckdb", "spark", "athena", "trino"):
        assert main(["sql", str(output), "--dialect", dialect]) == 0
        assert "current_detections AS SELECT" in capsys.readouterr().out
    assert main(["sql", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dialect"] == "duckdb"


def test_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b #1.PNG", "c.txt"):
        (folder / name).write_bytes(b"not read")
    whole_run(open_store(str(tmp_path / "out"), {}), 1, {f"file://{folder}/a.jpg": Image(1)})
    wanted = ["--source", str(folder), "--output", str(tmp_path / "out"), "--model", "torchvision:ssd300_vgg16"]
    assert main(["plan", *wanted, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "listed": 2,
        "new": 1,
        "changed": 1,
        "failed_retry": 0,
        "stale": 0,
        "unchanged": 0,
        "quarantined": 0,
        "deleted": 0,
        "undated": 0,
        "to_label": 2,
        "bytes": 16,
        "gets": 2,
        "shards": 1,
        "estimated_seconds": 0.2,
        "estimated_hours": 0.0,
        "estimated_dollars": None,
    }
    assert "stale images are counted as unchanged here" in captured.err
    assert main(["plan", *wanted[:-1], "torchvision:ssd3000"]) == 2, "a mistake is no model of another machine"
    assert "unknown architecture" in capsys.readouterr().err
    prices = ["--set", "prices.per_hour=36", "--set", "prices.per_1000_gets=500"]
    assert main(["plan", *wanted, *prices, "--no-delete", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["estimated_dollars"] == 1.0, "0.16 s of an hour, and two requests"
    assert "listing:" not in captured.err
    assert main(["plan", *wanted]) == 0
    assert "to_label\t2" in capsys.readouterr().out
    assert not list((tmp_path / "out" / "_plans").glob("*/plan.json"))[1:]


FAILS_LATE = "SELECT CASE WHEN range < 900000 THEN '1' ELSE 'x' END::INT FROM range(1000000)"
MISTAKES = [
    (["frob"], "No such command 'frob'"),
    (["runs"], "Missing argument 'OUTPUT'; see batchdet runs --help"),
    (["runs", "{tmp}/nowhere"], "no runs here"),
    (["runs", "nope://x"], "nope"),
    (["runs", "{tmp}", "--set", "policy.nms=x"], "--set policy.nms: only storage.output.* matters here"),
    (["runs", "{tmp}", "--set", "storage.output.secret=x"], "storage.output.secret looks like a secret"),
    (["sql", "{tmp}", "--dialect", "oracle"], "'oracle' is not one of 'duckdb', 'spark', 'athena', 'trino'"),
    (["sql", "{tmp}", "--dialect", "zz"], "error: Invalid value for '--dialect': 'zz' is not one of"),
    (["plan", "--source", "caf\udce9"], r"caf\xe9: not UTF-8"),
    (["query", "{tmp}/out put", ""], "SQL: the statement is empty"),
    (["query", "{tmp}/out put", "SELECT 1; SELECT 2", "--json"], "SQL: expected one statement, got 2"),
    (["query", "{tmp}/out put", FAILS_LATE, "--json"], "SQL: Conversion Error"),
    (["query", "{tmp}/out put", "SELECT selct"], 'SQL: Binder Error: Referenced column "selct"'),
    (["audit", "{tmp}/out put", "--run", "x"], "--run x: "),
    (["diff", "{tmp}/out put", "x", run_id(1)], "run x: "),
    (["diff", "{tmp}/out put", run_id(1), run_id(1)], "is the same run twice"),
    (["diff", "{tmp}/out put", run_id(1), "x", "--set", "policy.nms=x"], "--set policy.nms: only storage.output.*"),
    (["diff", "{tmp}/out put", "x", "y", "--set", "compare.iou_threshold=0"], "compare.iou_threshold"),
    (["diff", "{tmp}/out put", "x", "y", "--set", "alarms.max_frob=1"], "alarms.max_frob: unknown field"),
    (["diff", "{tmp}/out put", "x", "y", "--alarms", "{tmp}/none.yaml"], "alarms file {tmp}/none.yaml"),
    (["diff", "{tmp}/out put", "x", "y", "--to", "nope://x"], "--to nope://x"),
    (["label"], "source: required"),
    (["label", "--source", "x", "--output", "y"], "model: required"),
    (["label", "--ray", "somewhere", "--source", "x", "--output", "y", "--model", "torchvision:nope"], "HOST:PORT"),
    (["label", "--ray", "off", "--source", "x", "--output", "{tmp}/y", "--model", "torchvision:nope"], "nope"),
    (["plan", "--set", "nothing"], "--set nothing: expected path.to.field=value"),
    (["plan", "--set", "a=[1"], "--set a: '[1' is not a YAML value"),
    (
        ["plan", "--set", "policy.frob=1", "--source", "x", "--output", "y", "--model", "m"],
        "policy.frob: unknown field",
    ),
    (
        ["plan", "--source", "x", "--output", "y", "--model", "m", "--set", "policy.score_threshold=7"],
        "score_threshold",
    ),
    (["plan", "{tmp}/job.yaml"], "job.yaml"),
    (["plan", "--source", "{tmp}/none", "--output", "{tmp}/o", "--model", "torchvision:ssd300_vgg16"], "{tmp}/none"),
    (["refilter", "{tmp}/out put"], "no policy given"),
    (["refilter", "{tmp}/out put", "--set", "policy.score_threshold=0.01"], "under model.score_floor 0.05"),
    (["refilter", "{tmp}/out put", "--set", "policy.frob=1"], "policy.frob: unknown field"),
    (["refilter", "{tmp}/out put", "--set", "model.x=1", "--set", "policy.nms=agnostic"], "only storage.output.*"),
    (["compact", "{tmp}/out put", "--history", "some"], "'some' is not one of 'current', 'all'"),
    (["compact", "{tmp}/nowhere"], "no complete run here"),
    (["models"], "Missing command; see batchdet models --help"),
    (["models", "list", "{tmp}"], "no models here"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert says.replace("{tmp}", str(tmp_path)) in captured.err


def error_types(root: type[errors.BatchdetError] = errors.BatchdetError) -> Iterator[type[errors.BatchdetError]]:
    yield root
    for child in root.__subclasses__():
        yield from error_types(child)


@pytest.mark.parametrize("kind", sorted(set(error_types()), key=lambda kind: kind.__name__))
def test_every_error_becomes_its_exit_code(
    kind: type[errors.BatchdetError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = issubclass(kind, errors.StorageError | errors.DecodeError)

    def fail(*_: object) -> None:
        raise kind("this", "reason\nof two lines") if two else kind("this\nreason of two lines")

    monkeypatch.setattr(analysis, "list_runs", fail)
    assert main(["runs", "x"]) == kind.exit_code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("reason of two lines\n")
    assert kind.exit_code in (1, 2, 3, 75)
    monkeypatch.setenv("BATCHDET_DEBUG", "1")
    with pytest.raises(kind):
        main(["runs", "x"])


def test_ctrl_c_is_exit_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(analysis, "list_runs", interrupt)
    assert main(["runs", "x"]) == 1
    assert capsys.readouterr().err == "error: stopped; what is committed stays, the same command goes on\n"


def test_main_leaves_the_signals_of_the_program_that_calls_it() -> None:
    """A test run that is told to stop ends, and no command in it takes the signal for its own."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert main(["--version"]) == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_nothing_given_shows_the_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "batchdet query s3://labels/photos" in shown
    assert "3 audit or gate failed" in shown


def test_references_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--json"]) == 0
    found = {model["reference"]: model for model in json.loads(capsys.readouterr().out)}
    lite = found["torchvision:ssdlite320_mobilenet_v3_large@COCO_V1"]
    assert (lite["box_map"], lite["num_categories"], lite["is_default"]) == (0.213, 80, True)


def test_a_registry_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for version in ("1", "2"):
        folder = tmp_path / "shapes" / version
        folder.mkdir(parents=True)
        card = {"architecture": "ssd300_vgg16", "categories": ["__background__", "disc"], "metrics": {"map": 0.5}}
        (folder / "model.json").write_text(json.dumps(card))
    (tmp_path / "shapes" / "scratch").mkdir()
    (tmp_path / "shapes" / "promoted.json").write_text('{"version": "2"}')
    for registry in (tmp_path, tmp_path / "shapes"):
        assert main(["models", "list", str(registry), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [(model["version"], model["is_promoted"]) for model in found] == [("1", False), ("2", True)]
        assert found[1]["reference"] == f"file://{tmp_path}/shapes@2"
    assert main(["models", "list", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[2].split("\t")[:5] == ["shapes", "2", "promoted", "ssd300_vgg16", "0.5"]
    (tmp_path / "shapes" / "1" / "model.json").write_text("[]")
    assert main(["models", "list", str(tmp_path)]) == 2
    assert "shapes/1/model.json is not a model card" in capsys.readouterr().err


def test_the_doctor_never_shows_a_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAVISIBLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    assert main(["doctor", "--ray", "off", "--json"]) == 0
    shown = capsys.readouterr().out
    facts = {fact["name"]: fact for fact in json.loads(shown)}
    assert facts["s3:// credentials"]["finding"] == "from env"
    assert facts["torch"]["state"] == "ok"
    assert "hunter2" not in shown
    assert "AKIAVISIBLE" not in shown


def test_the_doctor_exits_1_when_something_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--ray", "127.0.0.1:1", "--source", str(tmp_path / "none")]) == 1
    shown = capsys.readouterr().out
    assert "fail\tsource\t" in shown
    assert "fail\tcluster\t--ray 127.0.0.1:1: no Ray cluster answers there" in shown


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "batchdet", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False, **options
    )


def test_a_process_of_its_own(output: Path) -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"batchdet {__version__}\n", "")
    done = run("query", str(output), "SELECT count(*) n FROM current_images", "--json")
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, [{"n": 3}], "")
    done = run("query", str(output), "SELECT selct")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_is_no_error(output: Path) -> None:
    command = [sys.executable, "-m", "batchdet", "query", str(output), "SELECT * FROM range(1000000)"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"range\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_sigterm_ends_a_query_in_one_line(output: Path) -> None:
    command = [sys.executable, "-m", "batchdet", "query", str(output), "SELECT * FROM range(10000000000)"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGTERM)
        process.stdout.read()
        assert process.stderr.read() == b"error: stopped; what is committed stays, the same command goes on\n"
        assert process.wait() == 1


def test_reading_commands_load_neither_torch_nor_ray(output: Path) -> None:
    program = (
        "import sys; from batchdet.cli.main import main; code = main(sys.argv[1:]); "
        "assert code == 0; sys.exit(','.join({'torch', 'ray', 'botocore'} & set(sys.modules)) or 0)"
    )
    whole_run(open_store(str(output), {}), 2, {"s3://b/a": Image(1)}, etag="other")
    compared = ["diff", str(output), run_id(1), run_id(2)]
    for arguments in (
        compared,
        ["runs", str(output)],
        ["audit", str(output)],
        ["query", str(output), "SELECT 1"],
        ["refilter", str(output), "--set", "policy.iou_threshold=0.4"],
        ["compact", str(output)],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            check=False,
        )
        told = [] if arguments[0] in ("refilter", "compact") else done.stderr.splitlines()
        assert (done.returncode, told) == (0, []), (arguments, done.stderr)


def test_the_doctor_looks_at_a_cluster_of_its_own() -> None:
    done = run("doctor", "--ray", "local", "--json")
    assert done.returncode == 0, done.stderr
    facts = {fact["name"].split()[0]: fact for fact in json.loads(done.stdout)}
    assert facts["cluster"]["finding"].startswith("local: 1 nodes")
    assert facts["node"] == {**facts["node"], "state": "ok"}
    assert f"batchdet {__version__}" in facts["node"]["finding"]
