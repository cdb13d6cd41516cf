"""One run at a time: real processes that hold, die, race and steal, and stores that fail."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from batchdet.cli.main import main
from batchdet.errors import OutputHeldError
from batchdet.storage.filesystem import PROBE_NAME, Store, open_store
from batchdet.storage.lease import LEASE, OWNER_VARIABLE, Lease, Terms, held
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import ROOT, Bucket
from tests.storage.stores import IMPATIENT

LONG = 3600.0
PATIENCE_S = 60.0


@pytest.fixture(params=["file", "moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def store(request: pytest.FixtureRequest, tmp_path: Path, reach: Callable[[Bucket], Bucket]) -> Store:
    if request.param == "file":
        return open_store(str(tmp_path / "out put"), {}, IMPATIENT)
    bucket = reach(request.getfixturevalue("new_bucket_on")(request.param))
    return open_store(f"{bucket.uri}/out put", {}, IMPATIENT)


class Process:
    """`lease_process`, told to begin by `go` and to end by `end`."""

    def __init__(self, store: Store, ttl_s: float, *flags: str, **env: str) -> None:
        command = [sys.executable, "-m", "tests.storage.lease_process", store.uri, str(ttl_s), *flags]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(PATIENCE_S)

    def discard(self) -> None:
        self.process.kill()
        with self.process:
            pass


@pytest.fixture
def holder(store: Store) -> Iterator[Callable[..., Process]]:
    begun: list[Process] = []

    def begin(ttl_s: float = LONG, *flags: str, **env: str) -> Process:
        begun.append(Process(store, ttl_s, *flags, **env))
        return begun[-1]

    yield begin
    for process in begun:
        process.discard()


def take(store: Store, ttl_s: float = LONG, **terms: bool) -> AbstractContextManager[Lease]:
    return held(store, "label", Terms(ttl_s, **terms))


def lease_of(store: Store) -> dict[str, object]:
    found: dict[str, object] = json.loads(store.read_bytes(LEASE))
    return found


def pretend(store: Store, **values: object) -> None:
    """Change what the lease says, as if another had written it."""
    store.write_bytes(LEASE, json.dumps({**lease_of(store), **values}).encode())


def until(happened: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < give_up


def test_a_second_run_is_refused_and_told_who_holds_it(store: Store, holder: Callable[..., Process]) -> None:
    first = holder(BATCHDET_OWNER="the nightly", RAY_JOB_CONFIG_JSON_ENV_VAR='{"metadata":{"job_submission_id":"ra"}}')
    first.go()
    assert first.said() == "held\n"
    with pytest.raises(OutputHeldError) as raised, take(store):
        pass
    said = str(raised.value)
    assert f"output {store.uri} is held by `batchdet label` of " in said
    assert f"process {first.process.pid}, the nightly, Ray job ra, since 20" in said
    assert "--steal-lease" in said
    assert raised.value.exit_code == 75
    assert first.end() == 0
    with take(store) as lease:
        lease.require()
        assert lease_of(store)["pid"] == os.getpid()
    assert not store.exists(LEASE)


def test_label_exits_75(
    store: Store, holder: Callable[..., Process], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = holder()
    first.go()
    assert first.said() == "held\n"
    job = ["--source", str(tmp_path), "--output", store.uri, "--model", str(tmp_path / "none.pth")]
    assert main(["label", *job, "--ray", "off"]) == 75
    said = capsys.readouterr()
    assert said.out == ""
    assert f"error: output {store.uri} is held by `batchdet label`" in said.err
    assert main(["label", *job, "--ray", "off", "--steal-lease"]) == 2  # it goes on to what it cannot label
    assert "taking the output from `batchdet label` of" in capsys.readouterr().err
    assert not store.exists(LEASE)


def test_of_many_at_once_one_wins(store: Store, holder: Callable[..., Process]) -> None:
    racers = [holder() for _ in range(4)]
    for racer in racers:
        racer.go()
    said = [racer.said() for racer in racers]
    assert said.count("held\n") == 1
    assert sorted(racer.end() for racer in racers) == [0, 75, 75, 75]


def test_a_killed_holder_of_this_machine_is_followed_at_once(store: Store, holder: Callable[..., Process]) -> None:
    first = holder()
    first.go()
    assert first.said() == "held\n"
    first.process.kill()
    first.process.wait()
    with take(store) as lease:
        lease.require()


def test_a_killed_holder_elsewhere_is_followed_once_its_lease_is_over(
    store: Store, holder: Callable[..., Process]
) -> None:
    first = holder()
    first.go()
    assert first.said() == "held\n"
    first.process.kill()
    first.process.wait()
    pretend(store, machine="elsewhere")
    with pytest.raises(OutputHeldError), take(store):
        pass
    # Its own clock says nothing: neither an expiry long gone nor one far ahead.
    pretend(store, expires_at="1999-01-01T00:00:00+00:00")
    with pytest.raises(OutputHeldError), take(store):
        pass
    pretend(store, expires_at="2999-01-01T00:00:00+00:00", ttl_seconds=0.2)
    taken = []

    def followed() -> bool:
        try:
            with take(store) as lease:
                lease.require()
                taken.append(lease)
        except OutputHeldError:
            return False
        return True

    assert not followed()
    until(followed)


def test_an_old_lease_is_taken_by_one_of_many(store: Store, holder: Callable[..., Process]) -> None:
    with take(store):
        left = store.read_bytes(LEASE)
    store.write_bytes(LEASE, left)
    pretend(store, machine="elsewhere", ttl_seconds=-2.0)
    racers = [holder() for _ in range(4)]
    for racer in racers:
        racer.go()
    assert [racer.said() for racer in racers].count("held\n") == 1
    assert sorted(racer.end() for racer in racers) == [0, 75, 75, 75]


def test_a_robbed_holder_stops_and_leaves_the_thief_alone(store: Store, holder: Callable[..., Process]) -> None:
    with take(store, 0.6) as lease:
        thief = holder(LONG, "steal")
        thief.go()
        assert thief.said() == "held\n"
        assert lease.lost.wait(PATIENCE_S)
        with pytest.raises(OutputHeldError, match=f"taken over by `batchdet label` of .*{thief.process.pid}"):
            lease.require()
    assert lease_of(store)["pid"] == thief.process.pid
    assert thief.end() == 0


def test_a_thief_is_seen_at_once_by_who_looks(store: Store) -> None:
    with take(store) as lease:
        lease.confirm()
        pretend(store, token="another", pid=1)
        lease.require()
        with pytest.raises(OutputHeldError, match=r"taken over by .* process 1,"):
            lease.confirm()
        with pytest.raises(OutputHeldError):
            lease.require()
    assert lease_of(store)["token"] == "another"


def test_it_is_renewed_for_as_long_as_it_is_held(store: Store) -> None:
    with take(store, 3.0) as lease:
        until(lambda: int(str(lease_of(store)["beats"])) >= 2)
        lease.require()
    assert not store.exists(LEASE)


def test_a_removed_lease_is_lost(store: Store) -> None:
    with take(store, 0.6) as lease:
        store.delete(LEASE)
        assert lease.lost.wait(PATIENCE_S)
        with pytest.raises(OutputHeldError, match="somebody removed its lease"):
            lease.require()
    assert not store.exists(LEASE)


def test_a_lease_nobody_can_read_binds_until_it_is_old(store: Store) -> None:
    store.write_bytes(LEASE, b'["not a lease"]')
    with pytest.raises(OutputHeldError, match="not a lease that this batchdet can read"), take(store):
        pass
    with take(store, steal=True) as lease:
        lease.require()


def test_a_block_within_a_block_holds_it_along(store: Store) -> None:
    with take(store) as outer:
        with take(store) as inner:
            assert inner is outer
        outer.require()
        assert store.exists(LEASE)
    assert not store.exists(LEASE)


def test_a_holder_that_slept_too_long_does_not_go_on(tmp_path: Path) -> None:
    now = [0.0]
    store = open_store(str(tmp_path), {})
    with held(store, "label", Terms(100.0, clock=lambda: now[0])) as lease:
        now[0] = 99.0
        lease.require()
        now[0] = 100.0
        with pytest.raises(OutputHeldError, match="could not be renewed in time"):
            lease.require()
    assert store.exists(LEASE)


def test_a_store_that_is_away_for_a_while_costs_nothing(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    store = open_store(faulty_bucket.uri, {}, IMPATIENT)
    with take(store, 15.0) as lease:
        down = faults.add(Fault(LEASE, "reset", times=IMPATIENT.attempts + 1))
        until(lambda: down.seen == down.times)
        until(lambda: int(str(lease_of(store)["beats"])) >= 1)
        lease.require()


def test_a_store_that_stays_away_ends_the_run_with_the_lease(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    store = open_store(faulty_bucket.uri, {}, IMPATIENT)
    told: list[str] = []
    with held(store, "label", Terms(1.0), told.append) as lease:
        down = faults.add(Fault(LEASE, "reset"))
        assert lease.lost.wait(PATIENCE_S)
        assert down.seen > IMPATIENT.attempts
        with pytest.raises(OutputHeldError, match=r"could not be renewed for 1 s \(.*gave up after 3 attempts"):
            lease.require()
    assert told == []


def test_a_store_without_conditions_is_named(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    store = open_store(faulty_bucket.uri, {}, IMPATIENT)
    told: list[str] = []
    with held(store, "label", Terms(LONG), told.append) as lease:
        lease.require()
    assert told == []
    faults.add(Fault(LEASE, "unconditional"))
    with held(store, "label", Terms(LONG), told.append) as lease:
        lease.require()
        with pytest.raises(OutputHeldError):
            subprocess_held(store)
    assert len(told) == 1
    assert "ignores conditional writes" in told[0]


def subprocess_held(store: Store) -> None:
    process = Process(store, LONG)
    process.go()
    said = process.said()
    code = process.end()
    process.discard()
    if code == 75:
        raise OutputHeldError(said)


def test_two_runs_on_a_store_without_conditions_end_as_one(faulty_bucket: Bucket, faults: FaultProxy) -> None:
    """Both wrote; the token that stays decides at the next renewal."""
    store = open_store(faulty_bucket.uri, {}, IMPATIENT)
    faults.add(Fault(LEASE, "unconditional"))
    with take(store, 0.6) as lease:
        pretend(store, token="of another who wrote in the same instant", pid=1)
        assert lease.lost.wait(PATIENCE_S)


def test_nothing_of_the_command_line_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["batchdet", "label", "--set", "notify.url=https://hooks.example/hush-hush"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    monkeypatch.setenv(OWNER_VARIABLE, "me")
    store = open_store(str(tmp_path), {})
    with take(store):
        said = store.read_bytes(LEASE)
    assert b"hush" not in said
    assert b'"name": "me"' in said
    assert not store.exists(PROBE_NAME)
