"""A training's workers on Ray Train. Knows when workers are begun again, not what they learn.

Checkpoints are the training's own files, written by its first worker, and not handed to `ray.train.report`: the same
command goes on after the death of a worker, a node or the whole cluster, with Ray or without.
"""

import asyncio
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchdet.cluster.paths import require_shared
from batchdet.cluster.session import connected, growable_nodes, living_nodes
from batchdet.errors import ClusterError, RunError, UserError
from batchdet.progress import Progress
from batchdet.storage.filesystem import open_store
from batchdet.teaching import Post, Tell, teach
from batchdet.training.job import RetrainConfig, WorkersConfig
from batchdet.training.steps import StepLine

RAY_FOLDER = "_ray"
"""Where Ray Train leaves a mark in the training's folder."""


class RayPlace:
    """Trains on a Ray cluster; what is labelled inside `ready` is labelled on the same."""

    def __init__(self, address: str) -> None:
        self._address = address

    @contextmanager
    def ready(self, job: RetrainConfig, progress: Progress) -> Iterator[None]:
        """See `batchdet.retraining.Place`."""
        with connected(self._address, progress.log):
            require_shared(_local_uris(job))
            nodes = [node["Resources"] for node in living_nodes()]
            self._crew = settle_crew(job.workers, nodes, may_grow=bool(growable_nodes()))
            progress.log(
                f"training: {self._crew.number} workers with {self._crew.cpus} CPUs, {self._crew.gpus} GPUs each"
            )
            yield

    def teach(self, job: RetrainConfig, tell: Tell) -> None:
        """See `batchdet.teaching.Classroom`."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        # Ray Train takes Ctrl-C for itself in the main thread.
        fitting = Aside(self._trainer(job, board).fit, then=board.close.remote)
        fitting.start()
        try:
            while (lines := ray.get(board.take.remote())) is not None:
                for line in lines:
                    tell(line)
            error = ray.get(board.error.remote())
        except RayError as lost:
            raise RunError(f"the Ray cluster was lost ({_one_line(lost)}); run the same command again") from lost
        if error is not None:
            raise error
        try:
            fitting.wait()
        except (TrainingFailedError, RayError) as failed:
            raise RunError(
                f"the training's workers failed ({_one_line(failed)}); its last checkpoint stays: run the same "
                "command again"
            ) from failed

    def _trainer(self, job: RetrainConfig, board: Any) -> TorchTrainer:
        logging.getLogger("ray.train").setLevel(logging.WARNING)
        # Relative paths of the job are those of the driver.
        os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
        output = open_store(job.output, job.storage.output)
        crew, attempts = self._crew, job.workers.max_failures
        # Ray's stubs know neither of its second version's fields.
        failures: Any = {"max_failures": attempts, "controller_failure_limit": attempts}
        number: Any = crew.number if crew.least == crew.number else (crew.least, crew.number)
        handler: Any = FSSpecHandler
        return TorchTrainer(
            work,
            train_loop_config={"job": job, "board": board, "cpus": crew.cpus},
            scaling_config=ScalingConfig(
                num_workers=number,
                use_gpu=bool(crew.gpus),
                resources_per_worker={"CPU": float(crew.cpus), "GPU": float(crew.gpus)},
            ),
            run_config=RunConfig(
                name="train",
                storage_path=output.path(RAY_FOLDER),
                storage_filesystem=None if output.is_local else PyFileSystem(handler(output.fs)),
                failure_config=FailureConfig(**failures),
            ),
        )


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers of a training.

    Attributes:
        number, least: how many are wanted, and how few go on when nodes are lost.
        cpus, gpus: of each.
    """

    number: int
    least: int
    cpus: int
    gpus: int


def settle_crew(workers: WorkersConfig, nodes: Sequence[Mapping[str, float]], *, may_grow: bool) -> Crew:
    """How many workers with what.

    Args:
        workers: as the job says.
        nodes: resources of each living node.
        may_grow: an autoscaler may add nodes.

    Raises:
        ClusterError: they do not fit.
    """
    totals = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    gpus = workers.gpus if workers.gpus != "auto" else int(totals["GPU"] >= 1)
    number = workers.number if workers.number != "auto" else max(1, int(totals["GPU"]) if gpus else 1)
    per_node = math.ceil(number / max(1, len(nodes)))
    smallest = min((node.get("CPU", 1.0) for node in nodes), default=1.0)
    cpus = workers.cpus if workers.cpus != "auto" else max(1, int(smallest / per_node))
    least = workers.least or number
    if sum(_holds(node, cpus, gpus) for node in nodes) < least and not may_grow:
        raise ClusterError(
            f"workers: {least} with {cpus} CPUs and {gpus} GPUs each do not fit into the cluster "
            f"({totals['CPU']:g} CPUs, {totals['GPU']:g} GPUs); lower workers.number or workers.cpus"
        )
    return Crew(number, least, cpus, gpus)


def _holds(node: Mapping[str, float], cpus: int, gpus: int) -> int:
    by_cpu = int(node.get("CPU", 0.0) // cpus)
    return min(by_cpu, int(node.get("GPU", 0.0) // gpus)) if gpus else by_cpu


def work(config: Mapping[str, Any]) -> None:
    """One worker, in Ray Train's process group."""
    board = config["board"]
    if ray.get(board.error.remote()) is not None:
        return  # begun again after an error that no new beginning mends
    context = ray.train.get_context()
    post = Post(
        rank=context.get_world_rank(),
        workers=context.get_world_size(),
        device=str(get_device()),
        threads=int(config["cpus"]),
    )
    try:
        teach(config["job"], post, board.say.remote)
    except (UserError, RunError) as error:
        ray.get(board.fail.remote(error))
        raise


@ray.remote(num_cpus=0)
class Board:
    """What workers say, for the driver to read; and the error that ends the training, for all of them."""

    def __init__(self) -> None:
        self._lines: list[StepLine] = []
        self._error: Exception | None = None
        self._is_closed = False
        self._news = asyncio.Event()

    async def say(self, line: StepLine) -> None:
        """One more step."""
        self._lines.append(line)
        self._news.set()

    async def fail(self, error: Exception) -> None:
        """An error of ours; the first one counts."""
        self._error = self._error or error

    async def error(self) -> Exception | None:
        """See `fail`."""
        return self._error

    async def close(self) -> None:
        """Nothing more will be said."""
        self._is_closed = True
        self._news.set()

    async def take(self) -> list[StepLine] | None:
        """The steps since the last time, once there are some; None at the end."""
        await self._news.wait()
        lines, self._lines = self._lines, []
        if not lines and self._is_closed:
            return None
        if not self._is_closed:
            self._news.clear()
        return lines


class Aside(threading.Thread):
    """A call beside the caller's thread, which ends with the process.

    Args:
        call: what to do.
        then: what to do afterwards, whatever became of it.
    """

    def __init__(self, call: Callable[[], object], then: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call, self._then = call, then
        self._error: BaseException | None = None

    def run(self) -> None:
        """See `threading.Thread`."""
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 (raised where it is waited for)
            self._error = error
        finally:
            self._then()

    def wait(self) -> None:
        """Until the call has ended; raises what it raised."""
        self.join()
        if self._error is not None:
            raise self._error


def _local_uris(job: RetrainConfig) -> dict[str, str]:
    found = {"output": job.output, "registry": job.registry, "held_out.images": job.held_out.images}
    if job.gold is not None:
        found["gold.images"] = job.gold.images
    if job.start.weights == "teacher":
        found["start.reference"] = str(job.start.reference)
    return found


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
