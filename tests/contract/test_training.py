"""Trainings on Ray Train: kills, several workers, a submitted job with everything on S3."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from batchdet.labelling import Hardware, InlineRunner
from batchdet.retraining import InlinePlace, retrain
from batchdet.storage.filesystem import open_store
from batchdet.training.steps import StepLine, read_steps
from tests.contract.conftest import Recorder
from tests.contract.processes import Command, started
from tests.retraining.worlds import job, label_world, put_files, put_world, settings
from tests.servers.s3 import ROOT, Bucket

STEPS = 16
COURSE: dict[str, object] = {
    "length": {"steps": STEPS, "batch_images": 4, "seed": 7},
    # Two workers round their sums otherwise than one, no more (tests/training/test_workers.py), but float noise doubles
    # with every few steps, the sooner the larger they are: at ten times the rate it passes 1e-4 before the last one.
    "optimiser": {"learning_rate": 0.0001, "scaling": "none"},
    "held_out__every_steps": STEPS // 2,
}
WORKER = "ray::RayTrainWorker"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    put_world(put_files(root))
    label_world(str(root))
    return root


@pytest.fixture(scope="module")
def undisturbed(world: Path) -> list[StepLine]:
    """The steps of one worker in one process that nobody disturbed."""
    config = job(str(world), "undisturbed", **COURSE)
    retrain(config, InlinePlace(), InlineRunner(Hardware("cpu", 1)), Recorder())
    return steps_of(config.output)


def steps_of(output: str) -> list[StepLine]:
    return read_steps(open_store(output, {}))


def arguments(root: str, training: str, **changes: object) -> list[str]:
    fields = settings(root, training, **{**COURSE, **changes})
    return ["retrain", "--json", *(f"--set={name}={json.dumps(value)}" for name, value in fields.items())]


def require_same(found: list[StepLine], expected: list[StepLine]) -> None:
    """The same images in the same order, and the same losses but for float noise."""
    assert [line.step for line in found] == list(range(1, STEPS + 1))
    assert [line.images for line in found] == [line.images for line in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.losses == pytest.approx(theirs.losses, abs=1e-4)
        # Six pictures have few ranks: two detections that change places may be a point.
        assert mine.map == (None if theirs.map is None else pytest.approx(theirs.map, abs=0.02))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_of_ray_train_learn_what_one_process_learns(
    world: Path, undisturbed: list[StepLine], tmp_path: Path
) -> None:
    with started(tmp_path / "two", [*arguments(str(world), "two", workers__number=2), "--ray", "local"], {}) as command:
        assert command.end() == 0, command.err
    require_same(steps_of(f"{world}/two"), undisturbed)
    assert json.loads(command.out)["num_steps"] == STEPS


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_random_kills_change_no_step(world: Path, undisturbed: list[StepLine], tmp_path: Path) -> None:
    """SIGKILL to a worker, which Ray Train begins again, and to the driver; then the same command."""
    dice, starts, kills = random.Random(4), 0, list[str]()
    command_line = [*arguments(str(world), "killed", workers__number=2, workers__max_failures=20), "--ray", "local"]
    code = None
    while code != 0:
        starts += 1
        with started(tmp_path / f"start-{starts}", command_line, {}) as command:
            target = ("worker", "driver", "nobody")[min(starts - 1, 2)]
            if target != "nobody":
                kills += _kill(command, world / "killed", target, dice)
            code = command.end()
            assert code in (0, -signal.SIGKILL), command.err
            command.require_nothing_left()
    assert set(kills) == {"worker", "driver"}
    require_same(steps_of(f"{world}/killed"), undisturbed)


def _kill(command: Command, output: Path, target: str, dice: random.Random) -> Iterator[str]:
    """Kill once some more checkpoints are there; a worker in the first start, after which its driver dies as well."""

    wanted = _checkpoints(output) + 2 * dice.randint(1, 2)
    assert command.until(lambda: _checkpoints(output) >= wanted), command.err
    if target == "worker":
        dice.choice(command.alive(WORKER)).kill()
        yield "worker"
        wanted = _checkpoints(output) + 2
        assert command.until(lambda: _checkpoints(output) >= wanted), command.err
    command.process.kill()
    yield "driver"


def _checkpoints(output: Path) -> int:
    """The step of the newest checkpoint; 0 before the first."""
    return max((int(path.parent.name) for path in output.glob("checkpoints/*/state.json")), default=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fewer_workers_than_wanted_take_the_same_steps(
    world: Path, undisturbed: list[StepLine], tmp_path: Path
) -> None:
    """Three are wanted and one is enough; this machine has room for one."""
    cores = len(os.sched_getaffinity(0))
    changes = {"workers__number": 3, "workers__least": 1, "workers__cpus": cores}
    with started(tmp_path / "few", [*arguments(str(world), "few", **changes), "--ray", "local"], {}) as command:
        assert command.end() == 0, command.err
    assert "training: 3 workers" in command.err
    require_same(steps_of(f"{world}/few"), undisturbed)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that only steers, on this machine, for nodes to join."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lost", [0, 1], ids=["first-lost", "second-lost"])
@pytest.mark.parametrize("least", [1, None], ids=["fewer-go-on", "another-node-comes"])
def test_a_lost_node_changes_no_step(
    lost: int, least: int | None, cluster: Cluster, world: Path, undisturbed: list[StepLine], tmp_path: Path
) -> None:
    """SIGKILL to all of a node, once with the first worker, which keeps the checkpoints, and once with the other."""
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    output = world / tmp_path.name
    changes = {"workers__number": 2, "workers__least": least, "workers__max_failures": 20}
    command_line = [*arguments(str(world), output.name, **changes), "--ray", cluster.address]
    with started(tmp_path / "start", command_line, {}) as command:
        assert command.until(lambda: _checkpoints(output) >= 4), command.err
        cluster.remove_node(nodes[lost], allow_graceful=False)
        if least is None:
            cluster.add_node(num_cpus=1)
        assert command.end() == 0, command.err
    begun = [line.strip() for line in command.err.splitlines() if line.endswith(" of 2 workers begin")]
    assert len(begun) >= 2, command.err
    assert begun[0].endswith("training: 2 of 2 workers begin")
    assert begun[-1].endswith(f"training: {least or 2} of 2 workers begin")
    require_same(steps_of(str(output)), undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_error_of_ours_in_a_worker_is_one_line(world: Path, tmp_path: Path) -> None:
    """Said once, with its own exit code, however often the workers could be begun again."""
    changes = {"optimiser": {"learning_rate": 1e30, "scaling": "none", "max_gradient_norm": None}}
    command_line = [*arguments(str(world), "diverged", workers__number=2, **changes), "--ray", "local"]
    with started(tmp_path / "diverged", command_line, {}) as command:
        assert command.end() == 1, command.err
    (line,) = [line for line in command.err.splitlines() if line.startswith("error: ")]
    assert "is not a finite number" in line and "look at the labels of file://" in line
    assert command.out == ""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_that_do_not_fit_are_refused_at_once(world: Path, tmp_path: Path) -> None:
    command_line = [*arguments(str(world), "crowded", workers__number=4, workers__cpus=64), "--ray", "local"]
    with started(tmp_path / "crowded", command_line, {}) as command:
        assert command.end() == 2, command.err
    (line,) = [line for line in command.err.splitlines() if line.startswith("error: ")]
    assert "4 with 64 CPUs and 0 GPUs each do not fit" in line
    assert not (world / "crowded" / "plan").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_submitted_job_with_everything_on_s3(bucket: Bucket, tmp_path: Path) -> None:
    """`ray job submit` on a cluster of this machine: pictures, labels, checkpoints, registry and plot in one bucket."""
    put_world(bucket.put)
    label_world(bucket.uri)
    port, dashboard = _free_port(), _free_port()
    env = os.environ | bucket.env | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    flags = [f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2", f"--temp-dir={_short(tmp_path)}"]
    head = subprocess.Popen(
        [*ray, "start", "--head", "--block", "--include-dashboard=true", *flags],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    cluster = Command(head, tmp_path)
    try:
        assert cluster.until(lambda: _answers(dashboard))
        entry = [sys.executable, "jobs/retrain.py", *arguments(bucket.uri, "submitted", workers__number=2)[1:]]
        submit = [*ray, "job", "submit", f"--address=http://127.0.0.1:{dashboard}", "--working-dir", str(ROOT), "--"]
        done = subprocess.run([*submit, *entry], env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        for process in cluster.alive():
            process.kill()
        head.wait()
    keys = bucket.keys("")
    assert {"registry/submitted/1/model.safetensors", "registry/submitted/promoted.json", "submitted/curves.png"} <= {
        *keys
    }
    assert f"submitted/checkpoints/{STEPS:08d}/state.json" in keys
    assert [line.step for line in steps_of(f"{bucket.uri}/submitted")] == list(range(1, STEPS + 1))
    written = b"".join(bucket.get(key) for key in keys if key.endswith((".json", ".jsonl")))
    assert bucket.server.secret_key.encode() not in written


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _short(folder: Path) -> Path:
    """Ray's sockets need a short path."""
    return Path("/tmp") / f"bd-{folder.name[-12:]}"
