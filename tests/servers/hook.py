"""A webhook in a thread of its own that answers as told. Knows nothing of what it is told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = "T000-hush-hush"
"""Part of its URL."""


@dataclass
class Hook:
    """A webhook that answers as told and keeps what it got."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    hang: threading.Event | None = None
    trickle: bool = False


@contextmanager
def running_hook() -> Iterator[Hook]:
    """A webhook on a free port."""
    hook = Hook()
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            hook.paths.append(self.path)
            if hook.hang is not None:
                released.wait()
                return
            if hook.trickle:
                while not released.wait(0.05):
                    try:
                        self.wfile.write(b"HTTP/1.1 200 OK\r\n" if not hook.answers else b"X: y\r\n")
                    except OSError:
                        return
                    hook.answers.append(0)
                return
            self.send_response(hook.answers.pop(0) if hook.answers else 200)
            for name, value in hook.headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    hook.url = f"http://127.0.0.1:{server.server_port}/services/{SECRET}"
    yield hook
    released.set()
    server.shutdown()
    server.server_close()
    serving.join()
