"""One writer of an output at a time: an object that its holder renews. Knows nothing of what the holder writes.

The store decides who holds it, by `exclusive`'s conditional writes. The clocks of two machines are never compared: a
lease is over when its holder removed it, when its holder was a process of this machine that has ended, or when its
age, by the store's own clock (the time of the lease object against that of an object written now), exceeds what its
holder asked for. The holder counts its seconds from before its last renewal, and so stops first.
"""

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from batchdet.errors import ConflictError, NotFoundError, OutputHeldError, StorageError
from batchdet.storage.exclusive import Seen, create_bytes, read_seen, remove_seen, replace_seen
from batchdet.storage.filesystem import PROBE_NAME, Store

LEASE = "_lease.json"
"""The lease of an output, relative to it; there while it is held, or until a dead holder is followed."""

OWNER_VARIABLE = "BATCHDET_OWNER"
"""Environment variable with a name for the holder, shown to whoever finds the output held."""

_TAKES = 5
_BEATS = 3
_CLOCK_GRAIN_S = 1.0
_JOIN_S = 5.0
_MACHINE = Path("/proc/sys/kernel/random/boot_id")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

Tell = Callable[[str], None]


def seconds_awake_or_not() -> float:
    """Seconds that also pass while the machine sleeps, where the system counts them."""
    return time.clock_gettime(_CLOCK)


@dataclass(frozen=True, slots=True)
class Terms:
    """How an output is held.

    Attributes:
        ttl_s: seconds after its last renewal for which the lease binds others.
        steal: take it whoever holds it.
        clock: seconds, monotonic; the holder's own.
    """

    ttl_s: float = 120.0
    steal: bool = False
    clock: Callable[[], float] = seconds_awake_or_not


TERMS = Terms()
"""The default."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds an output, as the lease says. Times are the holder's own, in ISO 8601, for people only.

    Attributes:
        token: random; tells this lease from every other.
        command: of batchdet, without its arguments: those may hold what nobody else shall read.
        machine: names one boot and one process namespace of a machine; None where the system has no such name.
        process_started: tells a process from a later one of the same pid.
        ray_job: submission id of the Ray job; None outside one.
        name: what the person calls it, from BATCHDET_OWNER.
        beats: renewals so far.
    """

    token: str
    command: str
    host: str
    pid: int
    machine: str | None
    process_started: str | None
    ray_job: str | None
    name: str | None
    ttl_seconds: float
    acquired_at: str
    heartbeat_at: str
    expires_at: str
    beats: int = 0

    def renewed(self) -> "Holder":
        """This holder now."""
        now = datetime.now(UTC)
        return replace(
            self,
            beats=self.beats + 1,
            heartbeat_at=now.isoformat(),
            expires_at=(now + timedelta(seconds=self.ttl_seconds)).isoformat(),
        )

    def encoded(self) -> bytes:
        """As the lease object has it."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @property
    def description(self) -> str:
        """One line for people."""
        known = {"": self.name, "Ray job ": self.ray_job}
        marks = "".join(f", {label}{value}" for label, value in known.items() if value)
        return f"`batchdet {self.command}` of {self.host}, process {self.pid}{marks}, since {self.acquired_at[:19]}Z"


class Lease:
    """An output held by this process, renewed by a thread of its own until it is given back or lost.

    Attributes:
        lost: set once the output is no longer held, whoever took it.
    """

    def __init__(self, output: Store, holder: Holder, terms: Terms, held_since: float) -> None:
        self.lost = threading.Event()
        self._output, self._holder, self._terms = output, holder, terms
        self._deadline = held_since + terms.ttl_s
        self._why = "its lease could not be renewed in time"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="batchdet-lease", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Go on only while the output is held.

        Raises:
            OutputHeldError: somebody else took it, or it could not be renewed.
        """
        if self.lost.is_set() or self._is_over():
            raise OutputHeldError(
                f"output {self._output.uri}: {self._why}; what is committed stays, run again to go on"
            )

    def confirm(self) -> None:
        """As `require`, and look at the lease itself: one read.

        Raises:
            OutputHeldError: somebody else took it, or it could not be renewed.
            StorageError: it cannot be read.
        """
        self.require()
        try:
            self._own()
        except OutputHeldError as error:
            self._lose(str(error))
            self.require()

    def release(self) -> None:
        """Give it back if it is still held; a store that refuses lets it run out.

        Raises:
            StorageError: the store could not be told.
        """
        self._stop.set()
        self._thread.join(_JOIN_S)
        if not self.lost.is_set() and not self._is_over():
            remove_seen(self._output, LEASE, self._own())

    def _lose(self, why: str) -> None:
        self._why = why
        self.lost.set()

    def _is_over(self) -> bool:
        return self._terms.clock() >= self._deadline

    def _beat(self) -> None:
        """Renew until told to stop; a store that does not answer is asked more often, until the lease is over."""
        pause = self._terms.ttl_s / _BEATS
        while not self._stop.wait(pause):
            began = self._terms.clock()
            try:
                self._renew()
            except OutputHeldError as error:
                self._lose(str(error))
                return
            except StorageError as error:
                self._why = f"its lease could not be renewed for {self._terms.ttl_s:g} s ({error.reason})"
                pause = self._terms.ttl_s / _BEATS / _BEATS
            else:
                self._deadline = began + self._terms.ttl_s
                pause = self._terms.ttl_s / _BEATS
            if self._is_over():
                self._lose(self._why)
                return

    def _renew(self) -> None:
        seen = self._own()
        renewed = self._holder.renewed()
        try:
            replace_seen(self._output, LEASE, renewed.encoded(), seen)
        except ConflictError:
            self._own()
            raise
        self._holder = renewed

    def _own(self) -> Seen:
        """The lease object, if it is this holder's."""
        seen = read_seen(self._output, LEASE)
        found = read_holder(seen)
        if found is None or found.token != self._holder.token:
            raise OutputHeldError(f"taken over by {found.description}" if found else "somebody removed its lease")
        return seen


_held: ContextVar[Mapping[str, Lease]] = ContextVar("_held", default={})  # noqa: B039 (replaced, never changed)


@contextmanager
def held(output: Store, command: str, terms: Terms = TERMS, tell: Tell = lambda line: None) -> Iterator[Lease]:
    """Hold the output inside the block; a block within it, of the same thread, holds it along.

    Args:
        output: the folder.
        command: of batchdet, without arguments, for whoever finds the output held.
        terms: for how long.
        tell: told in one line what a person should know.

    Raises:
        OutputHeldError: another run holds it.
        StorageError: the lease cannot be read or written.
    """
    already = _held.get().get(output.uri)
    if already is not None:
        already.require()
        yield already
        return
    lease = _take(output, _this_process(command, terms.ttl_s), terms, tell)
    scope = _held.set({**_held.get(), output.uri: lease})
    try:
        yield lease
    finally:
        _held.reset(scope)
        try:
            lease.release()
        except (StorageError, OutputHeldError) as error:
            tell(f"the lease of the output was not given back: {error}")


def read_holder(seen: Seen) -> Holder | None:
    """Who holds an output; None where the object is missing or is not a lease."""
    try:
        known = json.loads(seen.data or b"{}")
        names = {field.name for field in fields(Holder)}
        return Holder(**{name: value for name, value in known.items() if name in names})
    except (ValueError, TypeError, AttributeError):
        return None


def _take(output: Store, holder: Holder, terms: Terms, tell: Tell) -> Lease:
    for _ in range(_TAKES):
        began = terms.clock()
        seen = read_seen(output, LEASE)
        _require_free(output, seen, terms, tell)
        try:
            replace_seen(output, LEASE, holder.encoded(), seen)
        except ConflictError:
            continue
        _warn_if_unguarded(output, holder, tell)
        return Lease(output, holder, terms, began)
    raise OutputHeldError(f"output {output.uri}: others take it and give it back all the time; try again later")


def _require_free(output: Store, seen: Seen, terms: Terms, tell: Tell) -> None:
    if seen.data is None:
        return
    found = read_holder(seen)
    if found is not None and _died_here(found):
        return
    who = found.description if found else f"{LEASE}, which is not a lease that this batchdet can read"
    if terms.steal:
        tell(f"taking the output from {who}")
        return
    try:
        age = _age_s(output)
    except NotFoundError:
        return
    ttl = found.ttl_seconds if found else terms.ttl_s
    if age <= ttl + _CLOCK_GRAIN_S:
        raise OutputHeldError(
            f"output {output.uri} is held by {who}; last heard of {max(age, 0):.0f} s ago, free {ttl:g} s after that; "
            "wait for it, or take it with --steal-lease if it is dead"
        )
    tell(f"taking over from {who}, not heard of for {age:.0f} s")


def _age_s(output: Store) -> float:
    """Seconds since the lease was renewed; both times are the store's."""
    output.write_bytes(PROBE_NAME, b"")
    return (output.modified(PROBE_NAME) - output.modified(LEASE)).total_seconds()


def _warn_if_unguarded(output: Store, holder: Holder, tell: Tell) -> None:
    """Find a store that ignores conditions, by creating what is there already."""
    if output.protocol != "s3":
        return
    try:
        create_bytes(output, LEASE, holder.renewed().encoded())
    except ConflictError:
        return
    tell(
        f"{output.uri}: its store ignores conditional writes (If-None-Match); two runs that begin in the same instant "
        "both go on until the next renewal of the lease"
    )


def _this_process(command: str, ttl_s: float) -> Holder:
    now = datetime.now(UTC)
    return Holder(
        token=secrets.token_hex(16),
        command=command,
        host=platform.node(),
        pid=os.getpid(),
        machine=_machine(),
        process_started=_process_started(os.getpid()),
        ray_job=_ray_job(),
        name=os.environ.get(OWNER_VARIABLE),
        ttl_seconds=ttl_s,
        acquired_at=now.isoformat(),
        heartbeat_at=now.isoformat(),
        expires_at=(now + timedelta(seconds=ttl_s)).isoformat(),
    )


def _machine() -> str | None:
    """This boot of this machine, and this namespace of process numbers: containers have their own."""
    try:
        return f"{_MACHINE.read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _process_started(pid: int) -> str | None:
    """When the process began, in the kernel's count; None where there is none, or only its remains."""
    try:
        # The name before the last bracket may hold anything.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else rest[18]


def _died_here(holder: Holder) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    if holder.machine is None or holder.machine != _machine() or holder.process_started is None:
        return False
    return _process_started(holder.pid) != holder.process_started


def _ray_job() -> str | None:
    """The submission id that `ray job submit` hands its driver."""
    try:
        settings: Any = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        found = settings.get("metadata", {}).get("job_submission_id")
    except (ValueError, AttributeError):
        return None
    return str(found) if found else None
