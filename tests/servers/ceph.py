"""Ceph's object gateway on one node, objects in memory: a real S3 server that checks signatures. Knows no tests.

Debian packages: radosgw ceph-mon ceph-osd ceph-common (with --no-install-recommends). Every port is free and every
file lies in the given folder, so two can run at once. Ends with the process that started it.
"""

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.servers.s3 import S3Server

PROGRAMS = (
    "ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin", "setpriv",
)  # fmt: skip
ACCESS_KEY = "cephaccess"
SECRET_KEY = "ceph-hush-hush"
START_SECONDS = 90
COMMAND_SECONDS = 60

CONFIG = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
keyring = {folder}/keyring
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd pool default pg num = 4
osd pool default pgp num = 4
mon max pg per osd = 1000
mon warn on pool no redundancy = false
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
run dir = {folder}
[mon.a]
mon data = {folder}/mon
public addr = 127.0.0.1
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
public addr = 127.0.0.1
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{s3}
rgw thread pool size = 64
rgw data = {folder}/rgw
"""

CAPABILITIES = {
    "mon.": ["--cap", "mon", "allow *"],
    "client.admin": ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"],
    "client.rgw": ["--cap", "mon", "allow rwx", "--cap", "osd", "allow rwx"],
    "osd.0": ["--cap", "mon", "allow profile osd", "--cap", "osd", "allow *"],
}


def missing_programs() -> list[str]:
    """Programs the gateway needs that are not installed here."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextmanager
def ceph_server(folder: Path) -> Iterator[S3Server]:
    """The gateway with one user. `folder` is empty and short: it holds Unix sockets (107 characters at most)."""
    node = _Node(folder)
    with ExitStack() as stack:
        port = node.start(stack)
        yield S3Server(f"http://127.0.0.1:{port}", ACCESS_KEY, SECRET_KEY)


class _Node:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "ceph.conf"

    def start(self, stack: ExitStack) -> int:
        v2, v1, port = _free_ports(3)
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir()
        self.config.write_text(CONFIG.format(fsid=fsid, folder=self.folder, v2=v2, v1=v1, s3=port))
        self._write_keyring()
        self._start_monitor(stack, fsid, f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]")
        self._run("ceph", "auth", "import", "-i", "keyring")
        self._run("ceph", "osd", "new", osd, "0")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._serve(stack, "ceph-osd", "-i", "0")
        gateway = self._serve(stack, "radosgw", "-n", "client.rgw")
        self._await_answer(gateway, port)
        self._run(
            "radosgw-admin", "user", "create", "--uid=test", "--display-name=test",
            f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}",
        )  # fmt: skip
        return port

    def _write_keyring(self) -> None:
        for index, (name, capabilities) in enumerate(CAPABILITIES.items()):
            create = ["--create-keyring"] if index == 0 else []
            command = ["ceph-authtool", *create, "keyring", "--gen-key", "-n", name, *capabilities]
            subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=COMMAND_SECONDS)

    def _start_monitor(self, stack: ExitStack, fsid: str, address: str) -> None:
        command = ["monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, "monmap"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=COMMAND_SECONDS)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
        self._serve(stack, "ceph-mon", "-i", "a")

    def _run(self, program: str, *arguments: str) -> None:
        command = [program, "-c", str(self.config), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=COMMAND_SECONDS)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr[-500:]}")

    def _serve(self, stack: ExitStack, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        # The daemons need no orderly end: everything they hold is thrown away with the folder.
        output = stack.enter_context((self.folder / f"{program}.out").open("wb"))
        command = ["setpriv", "--pdeathsig", "KILL", program, "-c", str(self.config), "-f", *arguments]
        process = stack.enter_context(
            subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        )
        stack.callback(process.kill)
        return process

    def _await_answer(self, gateway: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and gateway.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                    return
            except urllib.error.HTTPError as error:
                error.close()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"Ceph's gateway does not answer on port {port}; see {self.folder}/*.log")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
