"""Many labellers on one machine, whose detectors do nothing: the driver's work must not grow with the images.

Real driver, real actors, plans, reports and commits; only pictures and model are left out. The same number of shards is
labelled with few and with ten times as many images, and the driver's CPU seconds are compared. A labeller is a process
of about 150 MB: 64 of them want 10 GB of memory. About 10 minutes on two cores, most of it starting processes.

Run: python -m tests.benchmarks.scale [--labellers 64] [--shards 512] [--images-per-shard 8] [--quick]
"""

import argparse
import os
import pickle
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from batchdet.cluster.crew import Crew, Member, check_room
from batchdet.cluster.driver import Driver
from batchdet.cluster.labeller import LABELLER_OPTIONS
from batchdet.config import JobConfig, load_job
from batchdet.labelling import RunContext
from batchdet.progress import PlainProgress
from batchdet.records import InputSpec, ModelInfo, ShardReport
from batchdet.storage.filesystem import open_store
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import PlanHeader, RunPlan, new_run_id
from batchdet.storage.planning import make_plan
from batchdet.storage.schema import LISTING
from tests.benchmarks.idle_labeller import IdleLabeller
from tests.benchmarks.report import describe_machine, print_results, print_table, spread

ROOT = Path(__file__).parents[2]
SQUARE = InputSpec((8, 8), 8, 8, 1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
MODEL = ModelInfo("torchvision:none", "none", ("__background__", "thing"), "sha256:0", SQUARE)
GROWTH = 10


@dataclass(frozen=True, slots=True)
class DriverCost:
    """What one run cost the driver.

    Attributes:
        cpu: seconds of its process.
        calls: made of labellers.
        answers: taken from them.
        nbytes: of the reports among the answers.
    """

    cpu: float
    calls: int
    answers: int
    nbytes: int


class IdleCrew(Crew):
    """Hires labellers that have no model to load."""

    def _hire_one(self) -> tuple[Member, Any]:
        options = LABELLER_OPTIONS | {"num_cpus": self._demand.cpus}
        member = Member(IdleLabeller.options(**options).remote())  # type: ignore[attr-defined]
        self.members.append(member)
        return member, member.actor.setup.remote(self._context.plan, self._context.job.output)


class CountingDriver(Driver):
    """Counts its messages."""

    calls = answers = 0

    def _send(self, member: Member, shard_id: int) -> None:
        self.calls += 1
        super()._send(member, shard_id)

    def _settle(self, call: Any, ref: Any) -> None:
        self.answers += call.kind == "label"
        super()._settle(call, ref)


class Weighing(PlainProgress):
    """Weighs the reports that reach the driver."""

    nbytes = 0

    def shard_committed(self, report: ShardReport) -> None:
        """See `Progress`."""
        self.nbytes += len(pickle.dumps(report))
        super().shard_committed(report)


def run_idle(output: str, labellers: int, shards: int, images_per_shard: int) -> DriverCost:
    """One run on the cluster this process is connected to, with a new plan of made names."""
    fields = {
        "source": "made",
        "output": output,
        "model.reference": MODEL.reference,
        "plan.images_per_shard": images_per_shard,
        "cluster.labellers": labellers,
        "cluster.gpus_per_labeller": 0,
    }
    job = load_job(None, fields)
    plan = _make_plan(job, shards * images_per_shard)
    context, progress = RunContext(job, plan), Weighing(StringIO())
    driver = CountingDriver(context, range(shards), progress, IdleCrew(context, check_room(job.cluster, progress)))
    started = time.process_time()
    try:
        driver.run()
    finally:
        driver.dismiss()
    cpu = time.process_time() - started
    committed = Ledger(open_store(output, {})).committed(plan.run_id)
    if committed != set(range(shards)):
        raise SystemExit(f"{len(committed)} of {shards} shards are committed")
    return DriverCost(cpu, driver.calls, driver.answers, progress.nbytes)


def _make_plan(job: JobConfig, images: int) -> RunPlan:
    uris = pa.array([f"s3://made/{number:09d}.jpg" for number in range(images)])
    sizes = pa.array(np.full(images, 100_000))
    when = pa.array(np.full(images, 1_767_225_600_000_000), pa.timestamp("us", tz="UTC"))
    listing = pa.record_batch([uris, uris, sizes, when], schema=LISTING)
    output = open_store(job.output, {})
    now = datetime.now(UTC)
    run_id = new_run_id(now, Ledger(output).run_ids())
    header = PlanHeader(run_id, "made", None, now, MODEL, "{}", "sha256:0", "{}", "{}")
    return make_plan(output, header, iter([listing]), iter(()), job.plan)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labellers", type=int, default=64)
    parser.add_argument("--shards", type=int, default=512)
    parser.add_argument("--images-per-shard", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two labellers, eight shards, one round")
    options = parser.parse_args(argv)
    if options.quick:
        options.labellers, options.shards, options.rounds = 2, 8, 1
    ray.init(
        address="local",
        num_cpus=options.labellers,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    few = options.images_per_shard
    costs: dict[int, list[DriverCost]] = {few: [], GROWTH * few: []}
    with tempfile.TemporaryDirectory(prefix="batchdet-benchmark-") as folder:
        run_idle(folder, options.labellers, options.labellers, 1)  # the first has Ray's own start to pay for
        for _ in range(options.rounds):
            for images, spent in costs.items():
                spent.append(run_idle(folder, options.labellers, options.shards, images))
    ray.shutdown()
    print(f"{options.labellers} labellers, {options.shards} shards. {describe_machine(len(os.sched_getaffinity(0)))}\n")
    _show(costs, options.shards)
    return 0


def _show(costs: dict[int, list[DriverCost]], shards: int) -> None:
    rows = []
    for images, spent in costs.items():
        cpu = [cost.cpu for cost in spent]
        per_shard = spread([1e3 * seconds / shards for seconds in cpu], ".2f")
        last = spent[-1]
        messages = f"{last.calls / shards:.2f} + {last.answers / shards:.2f}"
        rows.append(
            [str(images), str(images * shards), spread(cpu), per_shard, messages, f"{last.nbytes / shards:.0f}"]
        )
    print_table(
        ("images a shard", "images", "driver CPU s", "ms a shard", "calls + answers a shard", "report bytes a shard"),
        rows,
    )
    few, many = costs.values()
    growth = [more.cpu / less.cpu for less, more in zip(few, many, strict=True)]
    cpu_per_shard = median(cost.cpu for cost in many) / shards
    billion = cpu_per_shard * 1e9 / 4096
    print(f"The driver's CPU with {GROWTH} times the images: {spread(growth, '.2f', '×')}.")
    print(f"A billion images in shards of 4096, extrapolated: {billion / 60:.0f} minutes of the driver's CPU.\n")
    print_results({f"driver CPU with {GROWTH} times the images": median(growth)})


if __name__ == "__main__":
    raise SystemExit(main())
