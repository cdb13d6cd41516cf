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
from tests.contract.outputs import assert_same_rows, download, num_committed, text_of
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

    def require_no_secret(self) -> None:
        secret = self.env.get("AWS_SECRET_ACCESS_KEY")
        if secret:
            said = "".join(path.read_text() for path in self.folder.glob("start-*/std*"))
            assert secret not in said + text_of(self.fetch())


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


MakeScenario = Callable[[], Scenario]


@pytest.fixture
def on_disk(pictures: Path, tmp_path: Path) -> MakeScenario:
    expected = undisturbed_run(str(pictures), tmp_path / "undisturbed")
    numbers = itertools.count()

    def make() -> Scenario:
        folder = tmp_path / f"disk-{next(numbers)}"
        output = folder / "labels"
        return Scenario(
            folder=folder,
            arguments=arguments_for(str(pictures), str(output)),
            expected=expected,
            markers=lambda: num_committed(output),
            fetch=lambda: output,
            output=str(output),
        )

    return make


@pytest.fixture
def on_s3(moto_bucket: Bucket, pictures: Path, tmp_path: Path) -> MakeScenario:
    moto_bucket.put_all({f"a photo/{path.name}": path.read_bytes() for path in pictures.iterdir()})
    source = f"{moto_bucket.uri}/a photo"
    expected = undisturbed_run(source, tmp_path / "undisturbed")
    numbers = itertools.count()

    def make() -> Scenario:
        name = f"labels-{next(numbers)}"
        return Scenario(
            folder=tmp_path / name,
            arguments=arguments_for(source, f"{moto_bucket.uri}/{name}"),
            expected=expected,
            markers=lambda: len(moto_bucket.keys(f"{name}/images/")),
            fetch=lambda: download(moto_bucket, f"{name}/", tmp_path / "fetched" / name),
            output=f"{moto_bucket.uri}/{name}",
            env=moto_bucket.env,
        )

    return make


BY_TASKS = "--set=cluster.readers=tasks"
PLACES = [pytest.param("on_disk", marks=pytest.mark.slow), "on_s3"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", PLACES)
def test_kills_and_signals_change_no_row(place: str, request: pytest.FixtureRequest) -> None:
    """A reader killed, then SIGTERM; a labeller killed, then Ctrl-C; the driver killed; then the run completes.

    A signal ends the run at once with exit 1 and one line that says how to resume, and no process of its cluster
    stays behind. No secret is in anything it wrote.
    """
    scenario: Scenario = request.getfixturevalue(place)()
    with scenario.start(BY_TASKS) as command:
        assert command.kill("ray::read_remotely"), command.err
        assert scenario.after(command, 1), command.err
        assert command.interrupt(signal.SIGTERM) == 1
        require_resumable(command)
    with scenario.start() as command:
        assert scenario.after(command, 1), command.err
        assert command.kill("ray::Labeller"), command.err
        assert command.until(lambda: "a labeller died (process ended) with" in command.err), command.err
        assert scenario.after(command, 1), command.err
        assert command.interrupt(signal.SIGINT, whole_group=True) == 1
        require_resumable(command)
    with scenario.start() as killed:
        assert scenario.after(killed, 1), killed.err
        killed.process.kill()
        assert killed.end() == -signal.SIGKILL
        assert 4 <= scenario.markers() < SHARDS
        # At once, beside what Ray has yet to clear away of the killed run.
        with scenario.start() as command:
            assert command.end() == 0, command.err
            assert "were committed before" in command.err
            command.require_nothing_left()
    assert scenario.markers() == SHARDS
    scenario.require_undisturbed_rows()
    scenario.require_no_secret()


def require_resumable(command: Command) -> None:
    # Ray's own words of the dead may come before and after.
    (said,) = [line for line in command.err.splitlines() if line.startswith("error: ")]
    assert said.startswith("error: stopped; run ")
    assert said.endswith("run the same command again to resume")
    assert "Traceback" not in command.err
    assert command.out == ""
    command.require_nothing_left()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("place", ["on_disk", "on_s3"])
def test_random_kills_change_no_row(place: str, request: pytest.FixtureRequest) -> None:
    """Twenty times SIGKILL, at random moments, to readers, labellers and drivers; a completed run makes room anew."""
    dice, kills = random.Random(20), list[str]()
    while len(kills) < 20:
        scenario: Scenario = request.getfixturevalue(place)()
        code = None
        while code != 0:
            with scenario.start(BY_TASKS) as command:
                kills += _kill_at_random(scenario, command, dice)
                code = command.end()
                assert code in (0, -signal.SIGKILL), command.err
        scenario.require_undisturbed_rows()


def _kill_at_random(scenario: Scenario, command: Command, dice: random.Random) -> Iterator[str]:
    """Kill until the run has ended, which the driver's death does too."""
    while True:
        target = dice.choice(["ray::read_remotely", "ray::Labeller", "driver"])
        if not scenario.after(command, dice.randrange(3)):
            return
        if target == "driver":
            command.process.kill()
            yield target
            return
        if command.kill(target):
            yield target
