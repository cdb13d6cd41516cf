"""Mistakes people make: each ends in one line that names what to change, exit 2, and an untouched output."""

import json
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchdet.cli.main import main
from batchdet.demo.shipped import shipped_model
from tests.contract.outputs import num_committed
from tests.contract.processes import started
from tests.servers.s3 import Bucket, S3Server

MODEL = str(shipped_model())


@pytest.fixture
def folder(pictures: Path, tmp_path: Path) -> Path:
    """A folder of things to be wrong about, and two pictures that are not."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "readme.txt").write_text("no picture")
    (tmp_path / "photos").mkdir()
    for path in sorted(pictures.glob("scene-*"))[:2]:
        (tmp_path / "photos" / path.name).symlink_to(path)
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "tabs.yaml").write_text("source: s3://b\n\toutput: x\n")
    (tmp_path / "latin.yaml").write_bytes(b"source: \xff\xfe\n")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(_Code()))
    (tmp_path / "noise.safetensors").write_bytes(b"no weights at all")
    (tmp_path / "weights.safetensors").write_bytes((shipped_model() / "1" / "model.safetensors").read_bytes())
    (tmp_path / "file").write_text("where a folder should be")
    return tmp_path


class _Code:
    """What a pickle must not be able to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch code-ran",)


def say(error: str, *settings: str, source: str = "{}/photos", model: str = MODEL, output: str = "{}/labels") -> Any:
    """One case: the flags of a job with one mistake in it, and what the line must say."""
    flags = ["--source", source, "--output", output, "--model", model]
    return pytest.param([*flags, *(f"--set={setting}" for setting in settings)], error, id=error[:40])


BARE = "{}/weights.safetensors"
SSDLITE = "model.architecture=ssdlite320_mobilenet_v3_large"

MISTAKES = [
    say("{}/nowhere", source="{}/nowhere"),
    say("{}/empty", source="{}/empty"),
    say("{}/texts", source="{}/texts"),
    say("{}/photos/*.gif", source="{}/photos/*.gif"),
    say("s3x://photos", source="s3x://photos"),
    say("s3x://labels", output="s3x://labels"),
    say("{}/file", output="{}/file"),
    say("{}/file/labels", output="{}/file/labels"),
    say("/proc/labels", output="/proc/labels"),
    say("model.reference torchvision:yolov99", model="torchvision:yolov99"),
    say("torchvision:ssd300_vgg16@NONE", model="torchvision:ssd300_vgg16@NONE"),
    say("{}/nomodel", model="{}/nomodel"),
    say("{}/nomodel.safetensors", model="{}/nomodel.safetensors"),
    say("scenes@99", model=f"{MODEL}@99"),
    say("{}/code.pth", SSDLITE, "model.categories=[__background__, a]", model="{}/code.pth"),
    say("{}/noise.safetensors", SSDLITE, "model.categories=[__background__, a]", model="{}/noise.safetensors"),
    say("model.architecture", model=BARE),
    say("model.categories", SSDLITE, model=BARE),
    say("heads have 7 classes, categories names 2", SSDLITE, "model.categories=[__background__, a]", model=BARE),
    say("model.architecture", "model.architecture=yolov99", "model.categories=[__background__, a]", model=BARE),
    say("policy.score_threshold: Input should be less than or equal to 1", "policy.score_threshold=50"),
    say("policy.score_threshold is 0.01, under model.score_floor 0.05", "policy.score_threshold=0.01"),
    say("policy.score_thresholds.circle is 0.01, under", "policy.score_thresholds={circle: 0.01}"),
    say("policy.score_thresholds.traffic-light: Input should be", "policy.score_thresholds={traffic-light: 7}"),
    say("policy.score_thresholds.unicorn: the model has no such category", "policy.score_thresholds={unicorn: 0.7}"),
    say("policy.scores: unknown field", "policy.scores=0.5"),
    say("cluster.labellers: Input should be 'auto' or Input should be greater", "cluster.labellers=0"),
    say("plan.images_per_shard: ", "plan.images_per_shard=0"),
    say("storage.output.secret looks like a secret", "storage.output.secret=hush"),
    say(
        "storage.source.client_kwargs.endpoint_url looks",
        "storage.source={client_kwargs: {endpoint_url: http://me:hush@h}}",
    ),
    say("source holds a password", source="s3://me:hush@photos/"),
    say("storage options", "storage.source.frob=1", source="s3://photos/"),
]


def require_one_line(code: int, captured: Any, says: str) -> None:
    assert code == 2, captured.err
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert captured.err.splitlines()[-1] == errors[0]
    assert says in errors[0]
    assert "Traceback" not in captured.err
    assert "hush" not in captured.err


@pytest.mark.parametrize(("flags", "says"), MISTAKES)
def test_a_mistake_is_one_line(
    flags: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    code = main(["label", "--ray", "off", *(flag.replace("{}", str(folder)) for flag in flags)])
    require_one_line(code, capsys.readouterr(), says.replace("{}", str(folder)))
    left = [path for path in sorted(folder.rglob("*")) if path not in before]
    assert left in ([], [folder / "labels"]), "a mistake wrote something"
    assert not Path("code-ran").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent.yaml", "absent.yaml: No such file"),
        ("empty", "empty: Is a directory"),
        ("list.yaml", "list.yaml: expected fields"),
        ("tabs.yaml", "tabs.yaml is not YAML"),
        ("latin.yaml", "latin.yaml is not YAML"),
    ],
)
def test_an_unreadable_job_file_is_one_line(
    name: str, says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_one_line(main(["label", str(folder / name)]), capsys.readouterr(), says)


@pytest.mark.parametrize("place", ["source", "output"])
@pytest.mark.parametrize("mistake", ["bucket", "credentials", pytest.param("endpoint", marks=pytest.mark.slow)])
def test_s3_mistakes_are_one_line(
    place: str,
    mistake: str,
    folder: Path,
    moto_bucket: Bucket,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = f"{moto_bucket.uri}-not-there/x" if mistake == "bucket" else f"{moto_bucket.uri}/x"
    if mistake == "credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    if mistake == "endpoint":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    places = {"source": str(folder / "photos"), "output": str(folder / "labels")} | {place: uri}
    flags = ["--source", places["source"], "--output", places["output"], "--model", MODEL]
    require_one_line(main(["label", "--ray", "off", *flags]), capsys.readouterr(), uri.removesuffix("/x"))
    assert moto_bucket.keys() == []
    assert not list((folder).glob("labels/*"))


@pytest.mark.ceph
def test_a_wrong_secret_is_one_line(
    ceph: S3Server, new_bucket_on: Callable[[str], Bucket], reach: Callable[[Bucket], Bucket], folder: Path, capsys: Any
) -> None:
    right = new_bucket_on("ceph")
    reach(Bucket(S3Server(ceph.endpoint, ceph.access_key, "not-the-hush-hush"), right.name))
    flags = ["--source", f"{right.uri}/x", "--output", str(folder / "labels"), "--model", MODEL]
    require_one_line(main(["label", "--ray", "off", *flags]), capsys.readouterr(), right.uri)


@contextmanager
def listener() -> Iterator[int]:
    """A port where somebody takes connections and says nothing: not Ray."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield server.getsockname()[1]
        for connection in taken:
            connection.close()


@pytest.mark.slow
def test_addresses_where_no_ray_answers_are_one_line(folder: Path, tmp_path: Path) -> None:
    """Nobody listens, or somebody who is not Ray, or the address is none: said within seconds, not waited for."""
    with socket.socket() as free, listener() as mute:
        free.bind(("127.0.0.1", 0))
        cases = {
            f"127.0.0.1:{free.getsockname()[1]}": "no Ray cluster answers there",
            f"127.0.0.1:{mute}": "no",
            "somewhere": "expected auto, local, off or HOST:PORT",
        }
        for number, (address, says) in enumerate(cases.items()):
            flags = ["--source", str(folder / "photos"), "--output", str(folder / "labels"), "--model", MODEL]
            with started(tmp_path / f"start-{number}", ["label", "--ray", address, *flags], {}) as command:
                assert command.end() == 2, command.err
                assert command.err.splitlines()[-1].startswith(f"error: --ray {address}: ")
                assert says in command.err
                assert "Traceback" not in command.err


@pytest.mark.slow
def test_a_labeller_no_node_can_hold_is_one_line(folder: Path, tmp_path: Path) -> None:
    """A cluster of this machine alone will never have the GPU: the job is not left waiting for it."""
    flags = ["--source", str(folder / "photos"), "--output", str(folder / "labels"), "--model", MODEL]
    wish = "--set=cluster.cpus_per_labeller=4096"
    with started(tmp_path / "start", ["label", "--ray", "local", *flags, wish], {}) as command:
        assert command.end() == 2, command.err
        assert "error: no node holds a labeller of 4096 CPUs" in command.err
        command.require_nothing_left()


def job_flags(folder: Path) -> list[str]:
    flags = ["--source", str(folder / "photos"), "--output", str(folder / "labels"), "--model", MODEL]
    return ["label", "--ray", "off", *flags]


def test_an_output_of_another_schema_version_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(job_flags(folder)) == 0
    (run,) = (folder / "labels").glob("runs/*.parquet")
    table = pq.read_table(run)
    metadata = {key: b"2" if b"schema_version" in key else value for key, value in table.schema.metadata.items()}
    assert metadata != table.schema.metadata
    pq.write_table(table.replace_schema_metadata(metadata), run)
    capsys.readouterr()
    require_one_line(main(job_flags(folder)), capsys.readouterr(), "schema version")


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("policy.score_threshold=0.9", "policy: "),
        ("model.score_floor=0.2", "model.score_floor: "),
        ("model.precision=bf16", "model.precision: "),
    ],
)
def test_an_open_run_is_not_finished_with_another_job(
    setting: str, field: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "photos" / "broken.jpg").write_bytes(b"")
    assert main([*job_flags(folder), "--set=limits.max_failure_rate=0"]) == 1
    capsys.readouterr()
    code = main([*job_flags(folder), f"--set={setting}"])
    captured = capsys.readouterr()
    require_one_line(code, captured, field)
    assert "--new-run" in captured.err
    assert num_committed(folder / "labels") == 1
    assert json.loads(main_json(capsys, ["runs", str(folder / "labels"), "--json"]))[0]["status"] == "open"


def main_json(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out
