"""moto's S3 server as a process of its own: prints its port, ends when standard input closes. Knows no tests."""

import sys

from moto.server import ThreadedMotoServer


def main() -> None:
    """Serve until the parent lets go of the pipe, so that a killed test run leaves nothing behind."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
