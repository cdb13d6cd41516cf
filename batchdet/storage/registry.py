"""A model reference becomes local files. Knows folders and versions, nothing of weights.

Layout: `REGISTRY/<name>/<version>/{model.safetensors,model.json}` and `REGISTRY/<name>/promoted.json`.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchdet.errors import ModelError, NotFoundError, StorageError, TransientStorageError
from batchdet.records import ModelFiles
from batchdet.storage.filesystem import Store, open_store

WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "model.json"
PROMOTED_NAME = "promoted.json"
CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt")


def fetch_model(reference: str, options: Mapping[str, Any]) -> ModelFiles | None:
    """Bring the files of a model to this machine.

    Args:
        reference: `torchvision:NAME[@WEIGHTS]`, a checkpoint file, or a registry folder `URI[@version]`.
        options: fsspec storage options.

    Returns:
        Local paths; None for a torchvision reference, whose weights torchvision fetches itself.

    Raises:
        ModelError: nothing usable lies at the reference.
        TransientStorageError: the store does not answer.
    """
    if reference.startswith("torchvision:"):
        return None
    try:
        if reference.lower().endswith(CHECKPOINT_SUFFIXES):
            folder, _, name = reference.rpartition("/")
            return ModelFiles(weights=_local_copy(open_store(folder or ".", options), name), card=None)
        return _fetch_version(reference, options)
    except TransientStorageError:
        raise
    except StorageError as error:
        raise ModelError(
            f"model {reference}: {error}; expected torchvision:NAME, a .safetensors or .pth file, "
            "or a registry folder URI[@version]"
        ) from error


def open_model(reference: str, options: Mapping[str, Any]) -> tuple[Store, str | None]:
    """The folder of a model and the version asked for, from `URI[@version]`.

    Raises:
        StorageError: no filesystem serves the URI.
    """
    folder, slash, last = reference.rstrip("/").rpartition("/")
    name, _, wanted = last.partition("@")
    return open_store(folder + slash + name, options), wanted or None


def _fetch_version(reference: str, options: Mapping[str, Any]) -> ModelFiles:
    store, wanted = open_model(reference, options)
    prefix = "" if store.exists(CARD_NAME) and not wanted else f"{wanted or promoted_version(store)}/"
    return ModelFiles(weights=_local_copy(store, prefix + WEIGHTS_NAME), card=_local_copy(store, prefix + CARD_NAME))


def promoted_version(store: Store) -> str:
    """The live version of the model whose folder the store is.

    Raises:
        ModelError: there is no `promoted.json`, or it names no version.
    """
    try:
        return live_version(json.loads(store.read_bytes(PROMOTED_NAME)))
    except NotFoundError as error:
        versions = sorted(name.strip("/") for name in store.list_folders(""))
        raise ModelError(
            f"model {store.uri}: no {PROMOTED_NAME}; name a version as {store.uri}@VERSION "
            f"(there: {', '.join(versions) or 'none'})"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"model {store.uri}: {PROMOTED_NAME} does not name a version") from error


def live_version(promoted: Any) -> str:
    """The version that the tree of a `promoted.json` names.

    Raises:
        ValueError, KeyError, TypeError: it names none.
    """
    version = promoted["version"]
    if not isinstance(version, str | int) or isinstance(version, bool) or version == "":
        raise ValueError(f"version {version!r}")
    return str(version)


def _local_copy(store: Store, name: str) -> Path:
    """The file itself on a local store; else a copy in this machine's cache, named by its content."""
    if store.is_local:
        path = Path(store.path(name))
        if not path.is_file():
            raise NotFoundError(store.child_uri(name), "not found")
        return path
    data = store.read_bytes(name)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "batchdet" / "models"
    path = cache / hashlib.sha256(data).hexdigest() / name.rsplit("/", 1)[-1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
            scratch.write(data)
        Path(scratch.name).replace(path)
    return path
