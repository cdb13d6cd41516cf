"""Debian's Prometheus as a process of a test, and the text that it scrapes. Knows no metric by name."""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
PATIENCE_SECONDS = 60
DISCOVERY = "/tmp/ray/prom_metrics_service_discovery.json"

_SAMPLE = re.compile(r"^(?P<name>[a-z_A-Z:][\w:]*)\{(?P<labels>.*)\} (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Sample:
    """One line of a metrics page."""

    name: str
    labels: dict[str, str]
    value: float


def scrape(address: str) -> list[Sample]:
    """The metrics page of an agent."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        matches = map(_SAMPLE.match, page.read().decode().splitlines())
    return [Sample(m["name"], dict(_LABEL.findall(m["labels"])), float(m["value"])) for m in matches if m]


def sums(samples: list[Sample], name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The samples of a name, added up by some of their labels."""
    found: Counter[tuple[str, ...]] = Counter()
    for sample in samples:
        if sample.name == name:
            found[tuple(sample.labels[label] for label in labels)] += sample.value
    return dict(found)


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    address: str

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the HTTP API."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def series(self, query: str) -> list[dict[str, Any]]:
        """What an expression gives now."""
        return list(self.ask("query", query=query)["result"])

    def until(self, query: str) -> None:
        """Wait until an expression gives something."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not self.series(query):
            assert time.monotonic() < give_up, f"{query} stays empty"
            time.sleep(0.2)


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """The server with the files of deploy/monitoring, scraping one agent every second."""
    shutil.copytree(MONITORING, folder)
    discovery = folder / "discovery.json"
    discovery.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": [target]}]))
    config = folder / "prometheus.yml"
    text = config.read_text()
    assert DISCOVERY in text
    config.write_text(
        re.sub("(scrape|evaluation)_interval: .*", r"\1_interval: 1s", text.replace(DISCOVERY, str(discovery)))
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _await_ready(address, process, folder / "log")
        yield Prometheus(address)
    finally:
        process.terminate()
        process.wait()


def _await_ready(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < give_up, log.read_text()
        try:
            urllib.request.urlopen(f"http://{address}/-/ready", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
