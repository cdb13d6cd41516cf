"""Laws 1 to 3 and 5 whatever is killed: real processes, SIGKILL and signals, resumed with the same command."""

import itertools
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from batchdet.cli.main import main
from batchdet.config import load_job
from batchdet.demo.shipped import shipped_model
from batchdet.labelling import Hardware, InlineRunner
from batchdet.run import label_bucket
from tests.contract.conftest import Recorder
from tests.contract.outputs import assert_same_rows, download
from tests.contract.processes import Command, started
from tests.servers.s3 import Bucket

IMAGES_PER_SHARD = 2
SHARDS = 18


@dataclass
class Scenario:
    """One job, started as often as it takes.

    Attributes:
        markers: commit markers in the output now.
        fetch: the output as a local folder.
    """

    folder: Path
    arguments: list[str]
    expected: Path
    markers: Callable[[], int]
    fetch: Callable[[], Path]
    output: str
    env: Mapping[str, str] = field(default_factory=dict)
    starts: Iterator[int] = field(default_factory=itertools.count)

    def start(self, *settings: str) -> AbstractContextManager[Command]:
        return started(self.folder / f"start-{next(self.starts)}", [*self.arguments, *settings], self.env)

    def after(self, command: Command, more: int) -> bool:
        """Wait for so many more commits; False where the run ended before."""
        wanted = self.markers() + more
        return command.until(lambda: self.markers() >= wanted)

    def require_undisturbed_rows(self) -> None:
        assert main(["audit", self.output]) == 0
        assert_same_rows(self.fetch(), self.expected)


def arguments_for(source: str, output: str) -> list[str]:
    settings = {
        "plan.images_per_shard": IMAGES_PER_SHARD,
        "reading.block_images": 1,
        "limits.max_failure_rate": 1.0,
        # Kills are no fault of a shard here: it is not to be bisected.
        "limits.max_attempts_per_shard": 100,
    }
    flags = ["--source", source, "--output", output, "--model", str(shipped_model()), "--ray", "local"]
    return ["label", *flags, *(f"--set={name}={value}" for name, value in settings.items())]


def undisturbed_run(source: str, output: Path) -> Path:
    """The rows of a run nobody disturbed."""
    job = load_job(
        None,
        {
            "source": source,
            "output": str(output),
            "model.reference": str(shipped_model()),
            "plan.images_per_shard": IMAGES_PER_SHARD,
            "reading.block_images": 1,
            "limits.max_failure_rate": 1.0,
        },
    )
    label_bucket(job, InlineRunner(Hardware("cpu", 1)), Recorder())
    return output


@pytest.fixture
def on_disk(pictures: Path, tmp_path: Path) -> Scenario:
    output = tmp_path / "labels"
    return Scenario(
        folder=tmp_path,
        arguments=arguments_for(str(pictures), str(output)),
        expected=undisturbed_run(str(pictures), tmp_path / "undisturbed"),
        markers=lambda: len(list(output.glob("images/run_id=*/shard-*.parquet"))),
        fetch=lambda: output,
        output=str(output),
    )


@pytest.fixture
def on_s3(moto_bucket: Bucket, pictures: Path, tmp_path: Path) -> Scenario:
    moto_bucket.put_all({f"a photo/{path.name}": path.read_bytes() for path in pictures.iterdir()})
    source, output = f"{moto_bucket.uri}/a photo", f"{moto_bucket.uri}/labels"
    return Scenario(
        folder=tmp_path,
        arguments=arguments_for(source, output),
        expected=undisturbed_run(source, tmp_path / "undisturbed"),
        markers=lambda: len(moto_bucket.keys("labels/images/")),
        fetch=lambda: download(moto_bucket, "labels/", tmp_path / "fetched"),
        output=output,
        env=moto_bucket.env,
    )


READ_BY_TASKS = "--set=cluster.readers=tasks"


@pytest.mark.timeout(600)
def test_killed_reader_labeller_and_driver_change_no_row(on_s3: Scenario) -> None:
    """SIGKILL to a reader, a labeller and the driver of one run on S3; the same command ends it."""
    with on_s3.start(READ_BY_TASKS) as command:
        assert command.kill("ray::read_remotely")
        assert on_s3.after(command, 2)
        assert command.kill("ray::Labeller")
        assert on_s3.after(command, 2)
        command.process.kill()
        assert command.end() == -signal.SIGKILL
        command.require_nothing_left()
    assert 4 <= on_s3.markers() < SHARDS
    with on_s3.start() as command:
        assert command.end() == 0, command.err
        assert "were committed before" in command.err
        command.require_nothing_left()
    assert on_s3.markers() == SHARDS
    on_s3.require_undisturbed_rows()


@pytest.mark.timeout(600)
def test_interrupted_runs_end_at_once_and_say_how_to_resume(on_disk: Scenario) -> None:
    """SIGTERM, then Ctrl-C as a terminal sends it; no process of the local cluster is left; resumed, the same rows."""
    for number, whole_group in ((signal.SIGTERM, False), (signal.SIGINT, True)):
        with on_disk.start() as command:
            assert on_disk.after(command, 2), command.err
            assert command.interrupt(number, whole_group) == 1, command.err
            assert command.err.count("error: ") == 1
            assert command.err.splitlines()[-1].startswith("error: stopped; run ")
            assert command.err.splitlines()[-1].endswith("run the same command again to resume")
            assert "Traceback" not in command.err
            assert command.out == ""
            command.require_nothing_left()
        assert on_disk.markers() < SHARDS
    with on_disk.start() as command:
        assert command.end() == 0, command.err
        command.require_nothing_left()
    on_disk.require_undisturbed_rows()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("place", ["on_disk", "on_s3"])
def test_twenty_random_kills_change_no_row(place: str, request: pytest.FixtureRequest) -> None:
    """A run that ended complete is closed anew by the next start, so kills go on until twenty have hit."""
    scenario: Scenario = request.getfixturevalue(place)
    dice = random.Random(20)
    kills: list[str] = []
    while len(kills) < 20:
        with scenario.start(READ_BY_TASKS) as command:
            kills += _kill_until_ended(scenario, command, dice)
            command.end()
            command.require_nothing_left()
    with scenario.start() as command:
        assert command.end() == 0, command.err
    scenario.require_undisturbed_rows()


def _kill_until_ended(scenario: Scenario, command: Command, dice: random.Random) -> Iterator[str]:
    """Kill readers and labellers at random moments, and at last the driver."""
    while True:
        target = dice.choice(["read_remotely", "Labeller", "driver"])
        if not scenario.after(command, dice.randrange(2)):
            return
        if target == "driver":
            command.process.kill()
            yield target
            return
        if command.kill(f"ray::{target}"):
            yield target
