"""A night submitted from outside the cluster: once, followed to its end, with the job's own exit code."""

import ast
import configparser
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchdet.demo.scenes import draw_scenes
from batchdet.demo.shipped import shipped_model
from tests.contract.outputs import rows_of
from tests.deploy.head import Head, running_head

ROOT = Path(__file__).parents[2]
CRON = ROOT / "deploy" / "cron"
SUBMIT = ROOT / "deploy" / "jobs" / "submit"
ID = "batchdet-label-20261121-1"


class Ray:
    """A program named ray that says what `ray job` says: `states` holds the answers of `status`, one a line."""

    SCRIPT = """#!/bin/sh
echo "$@" >>"$FAKE/calls"
case "$1 $2" in
  "job status")
    next=$(head -n 1 "$FAKE/states"); sed -i 1d "$FAKE/states"
    case $next in
      gone) echo "ConnectionError: Failed to connect to Ray at address: http://head:8265." >&2; exit 1 ;;
      unknown) echo "RuntimeError: Request failed with status code 404: Job $3 does not exist." >&2; exit 1 ;;
      failed*)
        echo "Job '$3' failed"
        echo "Status message: Job entrypoint command failed with exit code ${next#failed }, last available logs" ;;
      lost) echo "Job '$3' failed"; echo "Status message: Job supervisor actor died" ;;
      stopped) echo "Job '$3' was stopped" ;;
      succeeded) echo "Job '$3' succeeded" ;;
      *) echo "Status for job '$3': RUNNING" ;;
    esac ;;
esac
"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "ray").write_text(self.SCRIPT)
        (folder / "ray").chmod(0o755)

    def submit(self, *states: str, **more: str) -> "subprocess.CompletedProcess[str]":
        (self.folder / "states").write_text("".join(f"{state}\n" for state in states))
        env = {"PATH": f"{self.folder}:{os.environ['PATH']}", "FAKE": str(self.folder)}
        given = {"NIGHT": "20261121", "POLL_SECONDS": "0"}
        return subprocess.run(
            ["sh", SUBMIT, "label"], env=env | given | more, capture_output=True, text=True, timeout=60
        )

    def calls(self, verb: str) -> list[str]:
        return [line for line in (self.folder / "calls").read_text().splitlines() if line.startswith(f"job {verb}")]


@pytest.mark.parametrize(
    ("states", "code", "submitted"),
    [
        (["unknown", "running", "gone", "running", "succeeded"], 0, True),
        (["running", "succeeded"], 0, False),
        (["unknown", "failed 1", "failed 1"], 1, True),
        (["unknown", "failed 75", "failed 75"], 75, True),
        (["failed 2"] * 3, 2, False),
        (["unknown", "lost"], 70, True),
        (["running", "stopped"], 70, False),
        (["gone"] * 21, 69, False),
    ],
)
def test_a_submission_ends_as_its_job(states: list[str], code: int, submitted: bool, tmp_path: Path) -> None:
    ray = Ray(tmp_path / "ray")
    assert ray.submit(*states).returncode == code
    wanted = (
        f"job submit --no-wait --submission-id {ID} -- python /home/batchdet/jobs/label.py /etc/batchdet/label.yaml"
    )
    assert ray.calls("submit") == [wanted] * submitted
    assert set(ray.calls("logs")) == {f"job logs --follow {ID}"}


@pytest.mark.parametrize(("given", "night"), [("20261120", "2026-11-20"), ("2026-11-20", "2026-11-20"), ("x", "x")])
def test_a_night_begun_again_on_another_day_is_the_same_night(given: str, night: str, tmp_path: Path) -> None:
    ray = Ray(tmp_path / "ray")
    assert ray.submit("unknown", "succeeded", DOOR="nightly", NIGHT=given, ATTEMPT="2").returncode == 0
    (call,) = ray.calls("submit")
    assert call.endswith(
        f"-{given}-2 -- python /home/batchdet/jobs/nightly.py /etc/batchdet/label.yaml --night {night}"
    )


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    with running_head(tmp_path / "head") as head:
        yield head


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_night_on_a_cluster_is_one_job_however_often_it_is_submitted(head: Head, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for drawn in draw_scenes(seed=3, count=6):
        (pictures / drawn.name).write_bytes(drawn.data)
    job = tmp_path / "job.yaml"
    job.write_text(f"source: {pictures}\noutput: {tmp_path / 'labels'}\nmodel: {{reference: {shipped_model()}}}\n")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("source: nowhere\n")

    def submit(name: str, job: Path) -> "subprocess.CompletedProcess[str]":
        given = {"RAY_ADDRESS": head.dashboard, "NIGHT": "20261121", "POLL_SECONDS": "1", "JOBS": str(ROOT / "jobs")}
        return subprocess.run(
            ["sh", SUBMIT, name, job], env=head.env | given, capture_output=True, text=True, timeout=300
        )

    first, again = submit("label", job), submit("label", job)
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"{ID}: done" in again.stdout, again.stdout + again.stderr
    assert rows_of(tmp_path / "labels", "runs").num_rows == 1
    assert rows_of(tmp_path / "labels", "images").num_rows == 6
    assert "has no authentication" not in first.stdout
    assert submit("wrong", wrong).returncode == 2


def test_crontab_calls_the_script_at_one() -> None:
    (line,) = [line for line in (CRON / "crontab").read_text().splitlines() if re.match(r"[0-9*]", line)]
    assert line.split()[:5] == ["0", "1", "*", "*", "*"]
    assert f"/opt/batchdet/{SUBMIT.relative_to(ROOT)}" in line.split()
    assert "RAY_AUTH_MODE=token" in (CRON / "crontab").read_text()


@pytest.mark.parametrize("name", ["batchdet.service", "batchdet.timer"])
def test_systemd_accepts(name: str, tmp_path: Path) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(CRON / name)
    assert "Unit" in unit
    if name.endswith("service"):
        assert unit["Service"]["Type"] == "oneshot"
        assert unit["Service"]["SuccessExitStatus"] == "75"
    if not shutil.which("systemd-analyze"):
        return
    for path in CRON.glob("batchdet.*"):
        # A program that is not on this machine is no mistake of the unit's.
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/batchdet/deploy/jobs/submit", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "batchdet" not in done.stderr


def test_airflows_night_is_one_at_a_time_and_skipped_where_another_run_works() -> None:
    tree = ast.parse((CRON / "airflow_dag.py").read_text())
    calls = {
        call.func.id: call for call in ast.walk(tree) if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    }
    dag = {keyword.arg: keyword.value for keyword in calls["DAG"].keywords}
    task = {keyword.arg: keyword.value for keyword in calls["BashOperator"].keywords}
    assert ast.literal_eval(dag["max_active_runs"]) == 1
    assert ast.literal_eval(dag["catchup"]) is False
    assert ast.literal_eval(task["skip_on_exit_code"]) == 75
    assert ast.literal_eval(task["bash_command"]).split() == [f"/opt/batchdet/{SUBMIT.relative_to(ROOT)}", "label"]
