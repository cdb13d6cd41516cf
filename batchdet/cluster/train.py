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
from batchdet.training.loop import require_device
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
            self._crew = settle_crew(job.workers, nodes, growable_nodes())
            require_device(job.network, "cuda" if self._crew.gpus else "cpu")
            self._say = progress.log
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
            while (news := ray.get(board.take.remote())) is not None:
                for one in news:
                    self._pass_on(one, tell)
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

    def _pass_on(self, news: "StepLine | Beginning", tell: Tell) -> None:
        if isinstance(news, StepLine):
            tell(news)
        else:
            self._say(f"training: {news.workers} of {self._crew.number} workers begin")

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


def settle_crew(
    workers: WorkersConfig, nodes: Sequence[Mapping[str, float]], growable: Sequence[Mapping[str, float]]
) -> Crew:
    """How many workers with what.

    Args:
        workers: as the job says.
        nodes: resources of each living node.
        growable: resources of a node of each kind that an autoscaler may add.

    Raises:
        ClusterError: they do not fit, and no node that may come holds one.
    """
    totals = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    gpus = workers.gpus if workers.gpus != "auto" else int(totals["GPU"] >= 1)
    number = workers.number if workers.number != "auto" else max(1, int(totals["GPU"]) if gpus else 1)
    # A head that only steers, and a node without GPUs among those with, hold no worker.
    hosts = [node for node in nodes if _holds(node, 1, gpus)] or [node for node in growable if _holds(node, 1, gpus)]
    per_node = math.ceil(number / max(1, len(hosts)))
    smallest = min((node["CPU"] for node in hosts), default=1.0)
    cpus = workers.cpus if workers.cpus != "auto" else max(1, int(smallest / per_node))
    least = workers.least or number
    may_grow = any(_holds(node, cpus, gpus) for node in growable)
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
    if post.rank == 0:
        board.say.remote(Beginning(post.workers))
    try:
        teach(config["job"], post, board.say.remote)
    except (UserError, RunError) as error:
        ray.get(board.fail.remote(error))
        raise


@dataclass(frozen=True, slots=True)
class Beginning:
    """Workers begin, at first or again.

    Attributes:
        workers: how many.
    """

    workers: int


@ray.remote(num_cpus=0)
class Board:
    """What workers say, for the driver to read; and the error that ends the training, for all of them."""

    def __init__(self) -> None:
        self._said: list[StepLine | Beginning] = []
        self._error: Exception | None = None
        self._is_closed = False
        self._news = asyncio.Event()

    async def say(self, news: StepLine | Beginning) -> None:
        """One more step, or who takes the next ones."""
        self._said.append(news)
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

    async def take(self) -> list[StepLine | Beginning] | None:
        """What was said since the last time, once there is something; None at the end."""
        await self._news.wait()
        said, self._said = self._said, []
        if not said and self._is_closed:
            return None
        if not self._is_closed:
            self._news.clear()
        return said


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
