"""What KubeRay is given fits its schemas, is closed to strangers, and lets a night be labelled once."""

import copy
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from batchdet.config import load_job
from tests.deploy.kubernetes import KUBERAY, check, objects, pods, rendered

OVERLAYS = ("cpu", "gpu", "minio")
OBJECTS = objects()
NIGHT = KUBERAY / "components" / "cronjob" / "night.sh"


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_fits_its_schema(name: str) -> None:
    check(OBJECTS[name])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_fits_its_schemas(overlay: str) -> None:
    for document in rendered(overlay):
        check(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "authOptions", "mode"), "disabled"),
        (("spec", "autoscalerOptions", "idleTimeoutSeconds"), "two minutes"),
        (("spec", "workerGroupSpecs", 0, "maxReplica"), 3),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "terminationGracePeriod"), 30),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "ports", 0, "containerPort"), "gcs"),
    ],
)
def test_schemas_refuse_mistakes(path: tuple[Any, ...], value: Any) -> None:
    (cluster,) = [copy.deepcopy(document) for document in OBJECTS.values() if document["kind"] == "RayCluster"]
    node: Any = cluster
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(cluster)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_confined(overlay: str) -> None:
    found = [pod["spec"] for document in rendered(overlay) for pod in pods(document)]
    assert found
    for spec in found:
        for container in spec["containers"]:
            context = spec.get("securityContext", {}) | container["securityContext"]
            assert context["runAsNonRoot"] is True
            assert context["runAsUser"] > 0
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert "limits" in container["resources"]
            _, _, tag = container["image"].rpartition(":")
            assert tag and tag != "latest"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_is_written_down(overlay: str) -> None:
    documents = rendered(overlay)
    assert not [document for document in documents if document["kind"] == "Secret"]
    for pod in (pod for document in documents for pod in pods(document)):
        for variable in (one for container in pod["spec"]["containers"] for one in container.get("env", [])):
            assert "valueFrom" in variable or not {"KEY", "TOKEN", "SECRET", "PASSWORD"} & set(
                variable["name"].split("_")
            )


def test_the_cluster_is_one_and_the_same_everywhere() -> None:
    (cron,) = [document for document in rendered("gpu") if document["kind"] == "RayCronJob"]
    cluster = cron["spec"]["jobTemplate"]["rayClusterSpec"]
    assert [group["groupName"] for group in cluster["workerGroupSpecs"]] == ["readers", "labellers"]
    readers, labellers = (group["template"]["spec"] for group in cluster["workerGroupSpecs"])
    assert "nvidia.com/gpu" not in readers["containers"][0]["resources"]["limits"]
    assert labellers["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for spec in (readers, labellers):
        (command,) = [container["lifecycle"]["preStop"]["exec"]["command"] for container in spec["containers"]]
        assert int(command[-1]) < spec["terminationGracePeriodSeconds"]
        assert any(toleration["key"] == "cloud.google.com/gke-spot" for toleration in spec["tolerations"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_job_of_every_overlay_is_a_job(overlay: str, tmp_path: Path) -> None:
    documents = rendered(overlay)
    (text,) = [d["data"]["job.yaml"] for d in documents if d["kind"] == "ConfigMap" and "job.yaml" in d["data"]]
    (tmp_path / "job.yaml").write_text(text)
    job = load_job(tmp_path / "job.yaml", {})
    limits = [
        container["resources"]["limits"]
        for d in documents
        for pod in pods(d)
        for container in pod["spec"]["containers"]
    ]
    assert bool(job.cluster.gpus_per_labeller) == any("nvidia.com/gpu" in limit for limit in limits)


def test_who_schedules_may_do_nothing_else() -> None:
    (role,) = [document for document in rendered("cpu") if document["kind"] == "Role"]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "create"]}]
    accounts = {d["metadata"]["name"]: d for d in rendered("cpu") if d["kind"] == "ServiceAccount"}
    assert accounts["batchdet-worker"]["automountServiceAccountToken"] is False


def test_one_night_at_a_time() -> None:
    documents = rendered("cpu")
    (cron,) = [document for document in documents if document["kind"] == "CronJob"]
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    (template,) = [document for document in documents if document["kind"] == "RayJob"]
    assert template["spec"]["suspend"] is True
    assert template["spec"]["shutdownAfterJobFinishes"] is True


class Kubectl:
    """A program named kubectl that answers from a folder: `states` holds what a RayJob's state is, one a line."""

    SCRIPT = """#!/bin/sh
echo "$@" >>"$KUBECTL/calls"
case "$*" in
  *--ignore-not-found*) [ ! -f "$KUBECTL/exists" ] || echo rayjob.ray.io/found ;;
  "get rayjob batchdet-label -o json") echo '{"metadata": {"name": "batchdet-label", "uid": "u"}, "spec": {}}' ;;
  *"-o jsonpath={.status.jobDeploymentStatus}")
    next=$(head -n 1 "$KUBECTL/states"); sed -i 1d "$KUBECTL/states"
    [ "$next" != error ] || exit 1
    printf %s "$next" ;;
  *status.reason*) echo "AppFailed: 3 of 9 shards are open" ;;
  patch*) echo "$@" >"$KUBECTL/patched" ;;
  create*) cat >/dev/null; touch "$KUBECTL/exists" ;;
esac
"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        program = folder / "kubectl"
        program.write_text(self.SCRIPT)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def night(self, *states: str) -> "subprocess.CompletedProcess[str]":
        (self.folder / "states").write_text("".join(f"{state}\n" for state in states))
        env = {"PATH": f"{self.folder}:{os.environ['PATH']}", "KUBECTL": str(self.folder), "NIGHT": "20261121"}
        return subprocess.run(
            ["sh", NIGHT], env=env | {"POLL_SECONDS": "0"}, capture_output=True, text=True, timeout=60
        )

    def calls(self, verb: str) -> list[str]:
        return [line for line in (self.folder / "calls").read_text().splitlines() if line.startswith(verb)]


def test_a_night_is_made_once_and_followed(tmp_path: Path) -> None:
    kubectl = Kubectl(tmp_path / "kubectl")
    assert kubectl.night("", "Initializing", "error", "Running", "Complete").returncode == 0
    assert len(kubectl.calls("create")) == 1
    assert "batchdet-label-20261121" in (kubectl.folder / "patched").read_text()
    assert kubectl.night("Running", "Complete").returncode == 0
    assert len(kubectl.calls("create")) == 1


def test_a_night_that_failed_says_why(tmp_path: Path) -> None:
    done = Kubectl(tmp_path / "kubectl").night("Running", "Failed")
    assert done.returncode == 1
    assert "3 of 9 shards are open" in done.stdout


def test_a_night_whose_kubernetes_does_not_answer_may_be_tried_again(tmp_path: Path) -> None:
    assert Kubectl(tmp_path / "kubectl").night(*["error"] * 20).returncode == 2


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_a_night_is_the_template_without_what_kubernetes_gave_it(tmp_path: Path) -> None:
    kubectl = Kubectl(tmp_path / "kubectl")
    kubectl.night("Complete")
    words = (kubectl.folder / "patched").read_text()
    patch = words[words.index("{") : words.rindex("}") + 1]
    (job,) = [copy.deepcopy(document) for document in OBJECTS.values() if document["kind"] == "RayJob"]
    given = {"uid": "u", "resourceVersion": "7", "generation": 1, "creationTimestamp": "2026-11-21T00:00:00Z"}
    job["metadata"] |= given
    job["status"] = {"jobDeploymentStatus": "Suspended"}
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = ["kubectl", "patch", "--local", "-f", tmp_path / "job.json", "--type", "merge", "-p", patch, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["metadata"] == {"name": "batchdet-label-20261121"}
    assert made["spec"] == job["spec"] | {"suspend": False}
    assert "status" not in made
