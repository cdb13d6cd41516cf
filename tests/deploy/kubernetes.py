"""Kubernetes objects of deploy/kuberay and the schemas they are held against. Knows no cluster.

Built-in kinds and pods: PyPI's kubernetes-validate, strictly. Ray's kinds: always a schema of the fields used here, and
KubeRay's own CRDs where BATCHDET_KUBERAY_CRDS names a folder with them: `ray-operator/config/crd/bases` of
ray-project/kuberay.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

KUBERAY = Path(__file__).parents[2] / "deploy" / "kuberay"
KUBERNETES = "1.33"
BUILT_IN = ("v1", "apps/v1", "batch/v1", "rbac.authorization.k8s.io/v1")
USED = yaml.safe_load(Path(__file__).with_name("kuberay_schema.yml").read_text())
CRDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"}

Object = dict[str, Any]


def documents(text: str) -> list[Object]:
    """The objects of a YAML text."""
    return [document for document in yaml.safe_load_all(text) if document]


def objects() -> dict[str, Object]:
    """Every object in a file of its own or of several, by file and name, Ray's kinds filled in as kustomize does."""
    found = {}
    for path in sorted(KUBERAY.rglob("*.yaml")):
        for document in documents(path.read_text()):
            if isinstance(document, dict) and document.get("kind") not in (None, "Kustomization", "Component"):
                found[f"{path.relative_to(KUBERAY)}:{document['kind']}/{document['metadata']['name']}"] = document
    by_kind = {document["kind"]: document for document in found.values()}
    by_kind["RayJob"]["spec"]["rayClusterSpec"] = by_kind["RayCluster"]["spec"]
    by_kind["RayCronJob"]["spec"]["jobTemplate"] = by_kind["RayJob"]["spec"]
    return found


def rendered(overlay: str) -> list[Object]:
    """An overlay as kustomize makes it; skips where there is no kubectl and no kustomize."""
    for program in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(program[0]):
            done = subprocess.run([*program, KUBERAY / "overlays" / overlay], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return documents(done.stdout)
    return pytest.skip("neither kustomize nor kubectl is installed")


def check(document: Object) -> None:
    """Hold an object, and every pod in it, against the schemas.

    Raises:
        jsonschema.ValidationError, kubernetes_validate.ValidationError: it does not fit.
    """
    if document["apiVersion"] in BUILT_IN:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    for schema in schemas(document["kind"]):
        jsonschema.Draft202012Validator(schema).validate(document)
    for pod in pods(document):
        metadata = pod.get("metadata", {}) | {"name": "pod"}
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": metadata}, KUBERNETES, strict=True
        )


def pods(value: Any) -> Iterator[Object]:
    """Every pod template anywhere in an object."""
    if isinstance(value, dict):
        if isinstance(value.get("spec"), dict) and "containers" in value["spec"]:
            yield value
        for inner in value.values():
            yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


def schemas(kind: str) -> Iterator[Object]:
    """The schema of the fields used here, and KubeRay's own where its CRDs are there."""
    yield {"$defs": USED["$defs"], **USED["kinds"][kind]}
    folder = os.environ.get("BATCHDET_KUBERAY_CRDS")
    if folder and kind in CRDS:
        crd = yaml.load((Path(folder) / f"ray.io_{CRDS[kind]}.yaml").read_text(), _LOADER)
        (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
        yield strict(version["schema"]["openAPIV3Schema"])


def strict(schema: Any) -> Any:
    """A structural schema as JSON schema that refuses fields it does not know, which Kubernetes drops silently."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {name: strict(value) for name, value in schema.items() if name not in ("properties", "format")}
    if "properties" in schema:
        made["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    return made


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
