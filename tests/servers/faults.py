"""An HTTP proxy in front of S3 that fails on purpose and counts what passes. Knows no S3 beyond `/bucket/key`.

Clients sign for the proxy's host and the proxy hands that Host header on, so signatures stay valid.
"""

import asyncio
import io
import socket
import struct
import threading
import urllib.parse
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web

Kind = Literal["status", "reset", "reset_midway", "truncate", "lose_answer", "hang", "slow", "gather", "unconditional"]
CUTS = ("truncate", "reset_midway", "lose_answer")
CONDITIONS = {"if-match", "if-none-match"}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "trailer", "upgrade"}


@dataclass
class Fault:
    """What to do to requests whose key holds `key`.

    Attributes:
        kind: `status` answers `status` with S3's XML and `code`; `reset` drops the connection; `reset_midway` drops it
            after half of the body; `truncate` ends it in good order after half of the body; `lose_answer` has the
            request done and drops the connection instead of saying so; `hang` never answers; `slow` waits `seconds`
            first; `gather` holds requests until `count` of them wait, then lets all pass; `unconditional` passes them
            on without their conditions, as stores do that know none.
        times: how many requests it hits; None for all.
        method: only this one; None for all.
        seen: requests hit so far.
    """

    key: str
    kind: Kind
    times: int | None = None
    method: str | None = None
    status: int = 503
    code: str = "SlowDown"
    seconds: float = 0.0
    count: int = 0
    seen: int = 0
    _all_here: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def takes(self, method: str, key: str) -> bool:
        """Whether it hits this request; counts it if so."""
        if self.key not in key or self.method not in (None, method) or self.seen == self.times:
            return False
        self.seen += 1
        if self.seen == self.count:
            self._all_here.set()
        return True


@dataclass(frozen=True)
class Seen:
    """One request that reached the proxy; `key` is percent-decoded, without the bucket; names of headers are lower."""

    method: str
    key: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)


class FaultProxy:
    """The proxy: program it with `add`, ask it with `count`, start afresh with `clear`."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.endpoint = ""
        self.requests: list[Seen] = []
        self._faults: list[Fault] = []
        self._session: aiohttp.ClientSession | None = None

    def add(self, fault: Fault) -> Fault:
        """Apply a fault from now on; of several that fit a request, the first added is taken."""
        self._faults.append(fault)
        return fault

    def clear(self, upstream: str | None = None) -> None:
        """Forget faults and requests."""
        self._faults = []
        self.requests = []
        self.upstream = upstream or self.upstream

    def count(self, key: str = "", method: str | None = None) -> int:
        """Requests so far whose key holds `key`."""
        return sum(key in seen.key and method in (None, seen.method) for seen in self.requests)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = urllib.parse.unquote(request.raw_path.partition("?")[0])
        key = path.lstrip("/").partition("/")[2]
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(Seen(request.method, key, headers))
        fault = next((fault for fault in self._faults if fault.takes(request.method, key)), None)
        if fault is None:
            return await self._pass(request)
        return await self._fail(request, fault)

    async def _fail(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        match fault.kind:
            case "status":
                await _body(request)
                return _refusal(fault)
            case "reset":
                return _reset(request)
            case "hang":
                await asyncio.Event().wait()
            case "slow":
                await asyncio.sleep(fault.seconds)
            case "gather":
                await fault._all_here.wait()
        dropped = HOP_BY_HOP | (CONDITIONS if fault.kind == "unconditional" else set())
        return await self._pass(request, fault.kind if fault.kind in CUTS else None, dropped)

    async def _pass(
        self, request: web.Request, cut: str | None = None, dropped: Set[str] = HOP_BY_HOP
    ) -> web.StreamResponse:
        assert self._session is not None
        body = await _body(request)
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in dropped]
        url = aiohttp.client.URL(self.upstream + request.raw_path, encoded=True)
        async with self._session.request(
            request.method, url, headers=headers, data=io.BytesIO(body) if body else None, allow_redirects=False
        ) as answer:
            data = await answer.read()
            if cut == "lose_answer":
                return _reset(request)
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            for name, value in answer.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    response.headers.add(name, value)
        if request.method != "HEAD":
            response.content_length = len(data)
        await response.prepare(request)
        await response.write(data[: len(data) // 2] if cut else data)
        if cut == "reset_midway":
            return _reset(request)
        if cut and request.transport is not None:
            request.transport.close()
        return response


async def _body(request: web.Request) -> bytes:
    if request.headers.get("Expect", "").lower() == "100-continue":
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # type: ignore[attr-defined]
    # Without the limit of `request.read`: weights are larger.
    return await request.content.read()


def _refusal(fault: Fault) -> web.Response:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f"<Error><Code>{fault.code}</Code><Message>made by the fault proxy</Message><RequestId>1</RequestId></Error>"
    )
    return web.Response(status=fault.status, text=text, content_type="application/xml")


def _reset(request: web.Request) -> web.StreamResponse:
    transport = request.transport
    if transport is not None:
        # Linger 0 turns the close into a TCP reset instead of an orderly end.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy on a free port, in a thread of its own, in front of `upstream` (`http://host:port`)."""
    proxy = FaultProxy(upstream)
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        server = web.Server(proxy._handle, access_log=None)
        runner = web.ServerRunner(server, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=512)
        await site.start()
        proxy.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        connector = aiohttp.TCPConnector(limit=256)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as proxy._session:
            ready.set()
            await stop.wait()
            await runner.cleanup()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="fault-proxy", daemon=True)
    thread.start()
    try:
        if not ready.wait(30):
            raise RuntimeError("the fault proxy did not start")
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
