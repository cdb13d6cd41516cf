"""A bucket of equal objects over bare HTTP, in a process of its own. Knows no S3 beyond HEAD and GET, no signature."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_HEADERS = (
    "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nETag: \"0123456789abcdef0123456789abcdef\"\r\n"
    "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: {}\r\n\r\n"
)  # fmt: skip


class _Answers(asyncio.Protocol):
    """Answers each request in turn."""

    def __init__(self, size: int) -> None:
        self._head = _HEADERS.format(size).encode()
        self._whole = self._head + bytes(size)
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._held = (self._held + data).split(b"\r\n\r\n")
        for request in requests:
            self._transport.write(self._head if request.startswith(b"HEAD") else self._whole)


@contextmanager
def object_server(size: int) -> Iterator[str]:
    """The endpoint of a server whose every object has `size` bytes."""
    command = [sys.executable, "-m", __name__, str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


async def _serve(size: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Answers(size), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
