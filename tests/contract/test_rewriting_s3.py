"""`refilter` and `compact` on S3: the rows they leave on a disk, in good weather and in bad, whatever is killed."""

import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from batchdet.analysis.audit import audit_run
from batchdet.cli.main import main
from batchdet.compaction import compact, remove
from batchdet.config import PolicyConfig
from batchdet.refiltering import refilter
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.lease import LEASE
from batchdet.storage.ledger import Ledger
from tests.contract.processes import started
from tests.histories import Killed, current, fused, play_past
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import Bucket

STRICT = "--set=policy.score_threshold=0.9"
AT_ONCE = ("--remove", "--grace-hours", "0")
SMALL_FILES = 12_000
"""Makes shards of a few images, so that several are written."""

COMMANDS = [("refilter", STRICT), ("compact",), ("compact", *AT_ONCE), ("compact", "--history=all", *AT_ONCE)]


def silent(_: str) -> None:
    pass


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    """An output with a past."""
    output = open_store(str(tmp_path / "disk"), {})
    play_past(output)
    return output


def uploaded(disk: Store, bucket: Bucket, prefix: str = "out") -> Store:
    """The same output on S3, byte for byte."""
    root = Path(disk.path(""))
    for path in (path for path in root.rglob("*") if path.is_file()):
        bucket.put(f"{prefix}/{path.relative_to(root).as_posix()}", path.read_bytes())
    return open_store(f"{bucket.uri}/{prefix}", {})


def facts(output: Store) -> list[tuple[object, ...]]:
    """Of each run what must not depend on where it lies."""
    ledger = Ledger(output)
    names = ("status", "policy_digest", "num_listed", "num_labelled", "num_failed", "num_detections")
    return [(*(getattr(row, name) for name in names), len(ledger.committed(row.run_id))) for row in ledger.run_rows()]


def require_sound(output: Store) -> None:
    """Nothing is open, every run that holds images passes its audit, and the output is free."""
    ledger = Ledger(output)
    assert ledger.open_runs() == []
    assert not output.exists(LEASE)
    for row in ledger.complete_runs():
        if row.num_labelled + row.num_failed:
            audit_run(output, row.run_id).require_passed()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_rows_equal_those_on_a_disk(bucket: Bucket, disk: Store, command: tuple[str, ...]) -> None:
    output = uploaded(disk, bucket)
    before = current(disk)
    name, *flags = command
    for store in (disk, output):
        assert main([name, store.uri, *flags]) == 0
    assert current(output) == current(disk)
    assert (current(output) == before) == (name == "compact")
    assert facts(output) == facts(disk)
    require_sound(output)
    if AT_ONCE[0] in flags:
        kept = {run_id for run_id in Ledger(output).run_ids() if bucket.keys(f"out/images/run_id={run_id}/")}
        found = {key.split("/")[2].removeprefix("run_id=") for key in bucket.keys("out/images/")}
        assert found == kept, "files of a removed run are left"
        assert not bucket.keys("out/_removed/")


KILLS = [
    (("refilter", STRICT), "PUT", "out/images/"),
    (("refilter", STRICT), "PUT", "out/runs/"),
    (("compact", *AT_ONCE), "PUT", "out/images/"),
    (("compact", *AT_ONCE), "PUT", "out/_removed/"),
    (("compact", *AT_ONCE), "DELETE", "out/runs/"),
    (("compact", *AT_ONCE), "DELETE", "out/images/"),
]


@pytest.mark.parametrize(("command", "method", "key"), KILLS, ids=[f"{kill[0][0]} {kill[2]}" for kill in KILLS])
def test_a_process_killed_half_way_is_gone_on_from(
    bucket: Bucket,
    faults: FaultProxy,
    reach: Callable[[Bucket], Bucket],
    disk: Store,
    tmp_path: Path,
    command: tuple[str, ...],
    method: str,
    key: str,
) -> None:
    """SIGKILL while a request is under way; the lease it leaves behind keeps nobody out."""
    uploaded(disk, bucket)
    name, *flags = command
    assert main([name, disk.uri, *flags]) == 0
    faults.clear(bucket.server.endpoint)
    seen_by_it = bucket.behind(faults.endpoint)
    fault = faults.add(Fault(key, "gather", method=method, count=1_000_000))
    with started(tmp_path / "killed", [name, f"{bucket.uri}/out", *flags], seen_by_it.env) as process:
        assert process.until(lambda: fault.seen > 0), process.err
        process.process.send_signal(signal.SIGKILL)
        assert process.end() == -signal.SIGKILL
    faults.clear()
    output = open_store(reach(bucket).uri + "/out", {})
    assert output.exists(LEASE)
    assert main([name, output.uri, *flags]) == 0
    assert current(output) == current(disk)
    assert facts(output) == facts(disk)
    require_sound(output)


@pytest.mark.parametrize("changes", [0, 1, 2, 3, 5, 8, 11, 14, 17, 20])
def test_every_answer_stays_whatever_is_killed(moto_bucket: Bucket, disk: Store, changes: int) -> None:
    output = uploaded(disk, moto_bucket)
    before = current(disk)

    def everything(killed: Callable[[Store], Store]) -> None:
        done = compact(killed(output), "current", silent, SMALL_FILES)
        remove(killed(output), done.superseded, timedelta(0))

    with pytest.raises(Killed):
        everything(lambda store: fused(store, changes))
    assert current(output) == before
    everything(lambda store: store)
    assert current(output) == before
    require_sound(output)


def test_a_refilter_is_seen_when_it_is_whole(moto_bucket: Bucket, disk: Store) -> None:
    output, policy = uploaded(disk, moto_bucket), PolicyConfig(score_threshold=0.9)
    before = current(disk)
    refilter(disk, policy, silent, SMALL_FILES)
    for changes in (1, 3, 1):  # before the plan is whole, in the first shard, and in it again
        with pytest.raises(Killed):
            refilter(fused(output, changes), policy, silent, SMALL_FILES)
        assert current(output) == before
    refilter(output, policy, silent, SMALL_FILES)
    assert current(output) == current(disk) != before
    assert facts(output) == facts(disk), "what was begun was gone on with"
    require_sound(output)


WEATHER = [
    ("status", {"status": 503, "code": "SlowDown"}),
    ("status", {"status": 500, "code": "InternalError"}),
    ("reset", {}),
    ("lose_answer", {}),
]


@pytest.mark.parametrize("command", [COMMANDS[0], COMMANDS[2]], ids=" ".join)
def test_trouble_that_passes_changes_nothing(
    faulty_bucket: Bucket, faults: FaultProxy, disk: Store, command: tuple[str, ...]
) -> None:
    output = uploaded(disk, faulty_bucket)
    name, *flags = command
    assert main([name, disk.uri, *flags]) == 0
    faults.clear()
    for method in ("PUT", "DELETE"):
        for place, (kind, answer) in zip(("images/", "detections/", "runs/", "_plans/"), WEATHER, strict=True):
            faults.add(Fault(f"out/{place}", kind, times=1, method=method, **answer))  # type: ignore[arg-type]
    assert main([name, output.uri, *flags]) == 0
    faults.clear()
    assert current(output) == current(disk)
    assert facts(output) == facts(disk)
    require_sound(output)


@pytest.mark.parametrize(
    ("command", "method"), [(COMMANDS[0], "PUT"), (COMMANDS[1], "PUT"), (COMMANDS[2], "DELETE")], ids=["a", "b", "c"]
)
def test_an_output_that_refuses_is_named_and_gone_on_with(
    faulty_bucket: Bucket,
    faults: FaultProxy,
    disk: Store,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    method: str,
) -> None:
    output = uploaded(disk, faulty_bucket)
    before, (name, *flags) = current(disk), command
    assert main([name, disk.uri, *flags]) == 0
    faults.clear()
    fault = faults.add(Fault("out/runs/", "status", method=method, status=403, code="AccessDenied"))
    capsys.readouterr()
    assert main([name, output.uri, *flags]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {output.uri}/runs/")
    assert "denied" in said.lower()
    assert fault.seen == 1, "what is denied is not asked again"
    assert current(output) == before
    faults.clear()
    assert main([name, output.uri, *flags]) == 0
    assert current(output) == current(disk)
    assert facts(output) == facts(disk)
    require_sound(output)
