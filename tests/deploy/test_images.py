"""The image, the laptop's cluster and the shell scripts, as far as they can be judged without a Docker daemon."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchdet.config import load_job

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SCRIPTS = [path for path in DEPLOY.rglob("*") if path.is_file() and path.read_bytes().startswith(b"#!/bin/sh")]
RAY_SERVICES = ("head", "worker", "label")


def tool(name: str) -> str:
    """A program that pip installed beside Python."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return found or pytest.skip(f"{name} is not installed")


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [tool("hadolint"), "--failure-threshold", "style", DEPLOY / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_is_pinned_and_not_root() -> None:
    targets = re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert [name for _, name in targets] == ["build", "cpu", "cuda"]
    assert all(":" in base or base in ("build", "cpu") for base, _ in targets)
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE) == ["1000"]
    assert all("-c deploy/constraints.txt" in line for line in re.findall("pip install.*", DOCKERFILE))
    assert "://" not in DOCKERFILE
    assert "RAY_AUTH_MODE=token" in DOCKERFILE


def test_what_the_image_copies_is_not_ignored() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for words in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for name in words.split():
            assert (ROOT / name).exists(), name
            assert any(fnmatch.fnmatch(name, pattern) for pattern in kept), name


def test_scripts_pass_shellcheck() -> None:
    assert {path.name for path in SCRIPTS} >= {"leave-cluster", "submit", "night.sh"}
    done = subprocess.run([tool("shellcheck"), *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_yaml_is_tidy() -> None:
    rules = Path(__file__).with_name("yamllint.yml")
    done = subprocess.run([tool("yamllint"), "--strict", "-c", rules, DEPLOY], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_laptops_cluster_asks_for_a_token_and_is_not_open_to_the_network() -> None:
    for name in RAY_SERVICES:
        service = COMPOSE["services"][name]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray-token"
        assert service["secrets"] == ["ray-token"]
        assert service["build"]["target"] == "cpu"
        assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        _, _, tag = service["image"].rpartition(":")
        assert tag and tag != "latest"


def test_the_laptops_secrets_lie_in_no_file_of_the_repository() -> None:
    for service in COMPOSE["services"].values():
        for name, value in service["environment"].items():
            assert not re.search("KEY|PASSWORD|SECRET", name) or value.startswith("${"), name
    ignored = subprocess.run(
        ["git", "check-ignore", "deploy/.env", "deploy/ray-token"], cwd=ROOT, capture_output=True, text=True
    )
    assert ignored.stdout.split() == ["deploy/.env", "deploy/ray-token"]


def test_the_laptops_job_is_a_job_and_its_door_is_there() -> None:
    assert load_job(DEPLOY / "jobs" / "label.yaml", {}).output == "s3://labels/photos"
    command = COMPOSE["services"]["label"]["command"]
    (mount,) = COMPOSE["services"]["label"]["volumes"]
    source, target, _ = mount.split(":")
    assert (DEPLOY / source / Path(command[0]).relative_to(target)).is_file()
    assert (DEPLOY / source / f"{command[1]}.yaml").is_file()


def test_a_node_without_work_leaves_at_once(tmp_path: Path) -> None:
    (tmp_path / "ray").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/said\n')
    (tmp_path / "ray").chmod(0o755)
    # Other tests' labellers are at work on this machine: a name of nobody's.
    script = (DEPLOY / "leave-cluster").read_text().replace("Labeller|read_remotely", "NobodyAtAll")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", script, "leave-cluster", "90"], env=env, capture_output=True, timeout=30)
    assert done.returncode == 0
    said = (tmp_path / "said").read_text().split("\n")
    assert said[0] == "drain-node"
    from ray.scripts.scripts import drain_node

    with drain_node.make_context("drain-node", said[1:-1]) as context:
        assert context.params["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
        assert context.params["deadline_remaining_seconds"] == 90


def test_the_names_for_which_a_node_waits_are_those_of_rays_processes() -> None:
    from batchdet.cluster.labeller import Labeller
    from batchdet.cluster.readers import read_remotely

    script = (DEPLOY / "leave-cluster").read_text()
    (names,) = re.findall(r"ray::\((.*?)\)", script)
    assert names.split("|") == [Labeller.__ray_metadata__.class_name, read_remotely._function.__name__]


def test_the_readme_goes_from_nothing_to_a_night_in_ten_commands() -> None:
    text = (DEPLOY / "README.md").read_text()
    (block,) = re.findall("<!-- ten commands -->\n```sh\n(.*?)```", text, re.DOTALL)
    assert len(block.splitlines()) == 10
    assert subprocess.run(["sh", "-n"], input=block, text=True).returncode == 0
    for path in re.findall(r"deploy/[\w./-]+", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"^\| `([\w./-]+)`", text, re.MULTILINE):
        assert (DEPLOY / path).exists() or not re.search("[/.]", path), path
