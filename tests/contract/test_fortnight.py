"""A fortnight of submitted nights over a bucket on S3 that never rests, held against plain Python after each."""

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from batchdet.cli.main import main
from batchdet.config import load_job
from batchdet.demo.scenes import SceneStyle, draw_scenes
from batchdet.demo.shipped import shipped_model
from batchdet.labelling import Hardware, InlineRunner
from batchdet.run import label_bucket
from batchdet.storage.filesystem import open_store
from batchdet.storage.plan import read_plan
from tests.contract.conftest import Recorder
from tests.contract.outputs import rows_of
from tests.contract.processes import PATIENCE_SECONDS
from tests.deploy.head import Head, running_head
from tests.servers.faults import Fault, FaultProxy
from tests.servers.s3 import ROOT, Bucket

SMALL = SceneStyle(sizes=((240, 180), (180, 240), (320, 240)))
NUM_AT_FIRST = 12
NUM_SCENES = 56
BOX = ("xmin", "ymin", "xmax", "ymax")
NEVER = 1_000_000
POLL_SECONDS = 0.1

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def bucket(
    request: pytest.FixtureRequest,
    new_bucket_on: Callable[[str], Bucket],
    reach: Callable[[Bucket], Bucket],
    faults: FaultProxy,
) -> Bucket:
    """A fresh bucket, which the environment reaches through the proxy."""
    bucket = new_bucket_on(request.param)
    faults.clear(bucket.server.endpoint)
    reach(bucket.behind(faults.endpoint))
    return bucket


@dataclass
class Photos:
    """The bucket's pictures, and the same as a dictionary.

    Attributes:
        scenes: sound pictures that were not there yet.
        held: bytes by key.
        sound: what was broken, as it was before, by key.
    """

    bucket: Bucket
    scenes: list[bytes]
    held: dict[str, bytes] = field(default_factory=dict)
    sound: dict[str, bytes] = field(default_factory=dict)
    gone: list[bytes] = field(default_factory=list)
    dice: random.Random = field(default_factory=lambda: random.Random(20))
    num_named: int = 0

    def put(self, key: str, data: bytes) -> None:
        self.bucket.put(key, data)
        self.held[key] = data

    def remove(self, key: str) -> bytes:
        self.bucket.client.delete_object(Bucket=self.bucket.name, Key=key)
        return self.held.pop(key)

    def name(self, what: str) -> str:
        """A key that never was."""
        self.num_named += 1
        return f"photos/{what}-{self.num_named:03d}.jpg"

    def add(self, count: int, what: str = "new") -> list[str]:
        keys = [self.name(what) for _ in range(count)]
        for key in keys:
            self.put(key, self.scenes.pop())
        return keys

    def turn_over(self) -> None:
        """What happens every day: pictures come, change, go, move, are copied, break, and are mended."""
        mended = self.dice.choice([None, *self.sound])
        keys = sorted(key for key in self.held if key not in self.sound)
        changed, deleted, moved, copied, broken = self.dice.sample(keys, 5)
        self.add(1)
        self.put(changed, self.scenes.pop())
        self.gone.append(self.remove(deleted))
        self.put(self.name("moved"), self.remove(moved))
        self.put(self.name("copied"), self.held[copied])
        if mended is not None:
            self.put(mended, self.sound.pop(mended))
        self.sound[broken] = self.held[broken]
        self.put(broken, self.held[broken][: len(self.held[broken]) // 2])


@dataclass
class Truth:
    """What each model says of each picture: labelled once, alone in a folder, by no night."""

    labels: Mapping[str, Mapping[str, list[dict[str, Any]]]]

    def expected(self, photos: Photos, held: Mapping[str, bytes], model: str, threshold: float) -> dict[str, Any]:
        """What the views must show of a bucket, by URI: None of a broken picture, else its candidates."""
        views: dict[str, Any] = {}
        for key, data in held.items():
            found = self.labels[model].get(digest(data))
            views[f"{photos.bucket.uri}/{key}"] = found and [
                row | {"accepted": row["score"] >= threshold} for row in found
            ]
        return views


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def truth_of(scenes: Iterable[bytes], registry: Path, folder: Path) -> Truth:
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, data in enumerate(scenes):
        (pictures / f"{number:03d}.jpg").write_bytes(data)
    labels = {}
    for model in ("1", "2"):
        output = folder / f"truth-{model}"
        fields = {"source": str(pictures), "output": str(output), "model.reference": f"{registry}@{model}"}
        label_bucket(load_job(None, fields), InlineRunner(Hardware("cpu", 1)), Recorder())
        digests = {row["image_uri"]: row["content_digest"] for row in rows_of(output, "images").to_pylist()}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in digests.values()}
        for row in rows_of(output, "detections").to_pylist():
            found[digests[row["image_uri"]]].append({name: row[name] for name in ("category", "score", *BOX)})
        labels[model] = found
    return Truth(labels)


def twins(folder: Path) -> Path:
    """The shipped model as version 1, and as version 2 the same in other words; 1 is live."""
    registry = folder / "shapes"
    for version in ("1", "2"):
        (registry / version).mkdir(parents=True)
        for path in (shipped_model() / "1").iterdir():
            (registry / version / path.name).write_bytes(path.read_bytes())
    card = registry / "2" / "model.json"
    document = json.loads(card.read_text())
    document["categories"] = [name if name.startswith("__") else name.upper() for name in document["categories"]]
    card.write_text(json.dumps(document))
    promote(lambda name, data: (registry / name).write_bytes(data), "1")
    return registry


def promote(put: Callable[[str, bytes], object], version: str) -> None:
    put("promoted.json", json.dumps({"version": version, "history": []}).encode())


@dataclass(frozen=True)
class Submitted:
    """A night given to the cluster with `ray job submit`."""

    head: Head
    bucket: Bucket
    job_id: str

    def ask(self, path: str = "") -> dict[str, Any]:
        token = Path(self.head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(
            f"{self.head.dashboard}/api/jobs/{self.job_id}{path}", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.load(answer))

    @property
    def logs(self) -> str:
        return str(self.ask("/logs")["logs"])

    @property
    def has_ended(self) -> bool:
        return self.ask()["status"] in ("SUCCEEDED", "FAILED", "STOPPED")

    def end(self) -> int:
        """Wait for the driver to end; its exit code, as a shell says it."""
        until(lambda: self.has_ended)
        return int(self.ask()["driver_exit_code"])

    def kill_driver(self) -> None:
        """SIGKILL, as the kernel does where memory is short."""
        holder = json.loads(self.bucket.get("labels/_lease.json"))
        assert holder["ray_job"] == self.job_id
        os.kill(holder["pid"], signal.SIGKILL)


def until(happened: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < give_up, "nothing happened"
        time.sleep(POLL_SECONDS)


@dataclass
class Fortnight:
    """The nights, and the state of things that the next one meets."""

    photos: Photos
    head: Head
    proxy: FaultProxy
    truth: Truth
    folder: Path
    capsys: pytest.CaptureFixture[str]
    model: str = "1"
    threshold: float = 0.5
    day: int = 0
    num_submitted: int = 0
    seen: set[tuple[str, str]] = field(default_factory=set)
    num_forwards: int = 0

    @property
    def output(self) -> str:
        return f"{self.photos.bucket.uri}/labels"

    @property
    def night(self) -> str:
        return f"2026-03-{self.day:02d}"

    def submit(self) -> Submitted:
        """Tonight, begun or gone on with."""
        self.num_submitted += 1
        submitted = Submitted(self.head, self.photos.bucket, f"night-{self.day:02d}-{self.num_submitted:03d}")
        config = self.folder / f"{submitted.job_id}.yaml"
        job = {
            "source": f"{self.photos.bucket.uri}/photos/",
            "output": self.output,
            "model": {"reference": f"{self.photos.bucket.uri}/models/shapes"},
            "policy": {"score_threshold": self.threshold},
            "plan": {"images_per_shard": 3},
            "reading": {"block_images": 2},
            "limits": {"max_failure_rate": 1.0},
        }
        config.write_text(yaml.safe_dump({"job": job, "diff": {"alarms": None}}))
        ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", f"--address={self.head.dashboard}"]
        entry = [sys.executable, str(ROOT / "jobs" / "nightly.py"), str(config), "--night", self.night]
        flags = ["--no-wait", "--submission-id", submitted.job_id]
        done = subprocess.run(
            [*ray, *flags, "--", *entry], env=self.head.env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return submitted

    def spend(self) -> None:
        """A quiet night."""
        tonight = self.submit()
        assert tonight.end() == 0, tonight.logs
        self.require_true(self.photos.held)

    @contextmanager
    def held_back(self, key: str) -> Iterator[Fault]:
        """A night inside the block waits for this key."""
        fault = self.proxy.add(Fault(key, "gather", method="GET", count=NEVER))
        yield fault
        fault.count = fault.seen + 1
        self.photos.bucket.behind(self.proxy.endpoint).get(key)
        self.proxy.clear()

    def spend_killed(self) -> None:
        """A labeller is killed, then the driver, with some shards committed; then the same night is begun again."""
        *_, last = self.photos.add(6, "zz-late")
        with self.held_back(last) as fault:
            tonight = self.submit()
            until(lambda: fault.seen == 1)
            (labeller, *_) = self.head.command.alive("ray::Labeller")
            labeller.kill()
            until(lambda: fault.seen == 2)
            tonight.kill_driver()
            assert tonight.end() == 128 + signal.SIGKILL
        (run_id,) = self.open_runs()
        assert self.images_of(run_id), "nothing was committed before the kill"
        self.spend()
        assert not self.open_runs()
        assert self.summary()["steps"]["label"]["run_id"] == run_id, "the night did not go on with its run"

    def spend_twice_at_once(self) -> None:
        (key,) = self.photos.add(1, "zz-late")
        with self.held_back(key) as fault:
            first = self.submit()
            until(lambda: fault.seen == 1)
            second = self.submit()
            assert second.end() == 75, second.logs
            assert f"Ray job {first.job_id}" in second.logs
        assert first.end() == 0, first.logs
        self.require_true(self.photos.held)

    def spend_on_a_broken_listing(self) -> None:
        """Most keys vanish, and nothing changes; they are back the next day."""
        before, runs = dict(self.photos.held), self.runs()
        lost = {key: self.photos.remove(key) for key in sorted(before)[: len(before) * 3 // 4]}
        tonight = self.submit()
        assert tonight.end() == 2, tonight.logs
        assert "no longer listed" in tonight.logs
        assert self.runs() == runs
        self.require_true(before, is_labelled=False)
        for key, data in lost.items():
            self.photos.put(key, data)

    def promote(self, version: str) -> None:
        promote(lambda name, data: self.photos.bucket.put(f"models/shapes/{name}", data), version)
        self.model = version

    def require_true(self, held: Mapping[str, bytes], *, is_labelled: bool = True) -> None:
        """The newest run passes its audit, the views show the bucket, and what was labelled had to be."""
        assert main(["audit", self.output]) == 0
        self.capsys.readouterr()
        self.require_views(self.truth.expected(self.photos, held, self.model, self.threshold))
        wanted = [
            (self.model, digest(data))
            for data in held.values()
            if is_labelled and digest(data) in self.truth.labels[self.model]
        ]
        self.num_forwards += sum(work not in self.seen for work in wanted)
        self.seen |= set(wanted)
        self.require_forwards()

    def require_views(self, expected: Mapping[str, Any]) -> None:
        images = {row["image_uri"]: row for row in self.query("SELECT image_uri, status FROM current_images")}
        assert images.keys() == expected.keys()
        statuses = {uri: "failed" if found is None else "labelled" for uri, found in expected.items()}
        assert {uri: row["status"] for uri, row in images.items()} == statuses
        columns = ", ".join(("category", "score", *BOX))
        shown: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in self.query(
            f"SELECT image_uri, accepted, {columns} FROM current_candidates ORDER BY image_uri, detection_index"
        ):
            shown[row.pop("image_uri")].append(row)
        accepted = self.query(f"SELECT image_uri, {columns} FROM current_detections")
        for uri, found in expected.items():
            require_same(shown.pop(uri, []), found or [])
            mine = [row for row in accepted if row["image_uri"] == uri]
            assert len(mine) == sum(row["accepted"] for row in found or ())
        assert not shown

    def require_forwards(self) -> None:
        """Every row that a forward pass made, in runs of every kind: so many as there had to be, each in one run."""
        runs: dict[tuple[str, str], set[str]] = defaultdict(set)
        num_rows = 0
        for run_id in self.run_ids():
            if read_plan(open_store(self.output, {}), run_id).header.derived is not None:
                continue
            for row in self.images_of(run_id):
                if row["status"] == "labelled" and row["copied_from"] is None:
                    runs[row["model_digest"], row["content_digest"]].add(run_id)
                    num_rows += 1
        twice = {work: sorted(found) for work, found in runs.items() if len(found) > 1}
        assert not twice, "labelled again by the same model on the same bytes"
        assert num_rows == self.num_forwards

    def images_of(self, run_id: str) -> list[dict[str, Any]]:
        """Rows of a run, complete or not, each with its model's digest."""
        rows = []
        for key in self.photos.bucket.keys(f"labels/images/run_id={run_id}/"):
            table = pq.read_table(io.BytesIO(self.photos.bucket.get(key)))
            model = table.schema.metadata[b"batchdet.model_digest"].decode()
            rows += [row | {"model_digest": model} for row in table.to_pylist()]
        return rows

    def run_ids(self) -> list[str]:
        keys = self.photos.bucket.keys("labels/_plans/")
        return sorted({key.split("/")[2] for key in keys})

    def runs(self) -> list[str]:
        return self.photos.bucket.keys("labels/runs/")

    def open_runs(self) -> list[str]:
        closed = {Path(key).stem for key in self.runs()}
        return [run_id for run_id in self.run_ids() if run_id not in closed]

    def summary(self) -> dict[str, Any]:
        return dict(json.loads(self.photos.bucket.get(f"labels/nights/{self.night}/summary.json")))

    def query(self, sql: str) -> list[dict[str, Any]]:
        assert main(["query", "--json", self.output, sql]) == 0
        return list(json.loads(self.capsys.readouterr().out))


def require_same(shown: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same candidates in the same order, but for float noise of other batches."""
    assert [(row["category"], row["accepted"]) for row in shown] == [
        (row["category"], row["accepted"]) for row in expected
    ]
    for mine, theirs in zip(shown, expected, strict=True):
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-4)
        assert [mine[side] for side in BOX] == pytest.approx([theirs[side] for side in BOX], abs=0.05)


@pytest.fixture
def fortnight(
    bucket: Bucket, faults: FaultProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Fortnight]:
    scenes = [scene.data for scene in draw_scenes(seed=77, count=NUM_SCENES, style=SMALL)]
    assert len(set(scenes)) == NUM_SCENES
    registry = twins(tmp_path)
    truth = truth_of(scenes, registry, tmp_path)
    for path in registry.rglob("*.*"):
        bucket.put(f"models/shapes/{path.relative_to(registry)}", path.read_bytes())
    photos = Photos(bucket, scenes)
    with running_head(tmp_path / "head") as head:
        yield Fortnight(photos, head, faults, truth, tmp_path, capsys)


def test_a_fortnight(fortnight: Fortnight) -> None:
    """Nothing is labelled twice by a model, whatever is killed, renamed, broken, or goes back to what it was."""
    photos = fortnight.photos
    first, *_ = photos.add(NUM_AT_FIRST)
    photos.put(photos.name("same"), photos.held[first])
    by_day = {
        3: fortnight.spend_killed,
        5: fortnight.spend_twice_at_once,
        6: fortnight.spend_on_a_broken_listing,
    }
    for day in range(1, 15):
        fortnight.day = day
        if day not in (1, 6, 14):
            photos.turn_over()
        if day == 8:
            fortnight.promote("2")
        elif day == 10:
            fortnight.threshold = 0.8
        elif day in (11, 12):
            # Deleted under the policy before this one.
            photos.put(photos.name("back"), photos.gone[-3])
        elif day == 13:
            fortnight.promote("1")
        by_day.get(day, fortnight.spend)()
