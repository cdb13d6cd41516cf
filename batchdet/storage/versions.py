"""The models and versions of a registry, as their cards tell. Knows no weights."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from batchdet.errors import ConflictError, ModelError, NotFoundError
from batchdet.storage.exclusive import create_bytes
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.registry import CARD_NAME, PROMOTED_NAME, promoted_version

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of one model.

    Attributes:
        reference: what `--model` takes.
        is_promoted: the model's live version.
        metrics: as the card has them.
    """

    name: str
    version: str
    reference: str
    is_promoted: bool
    architecture: str
    categories: tuple[str, ...]
    metrics: Mapping[str, Any]


def list_versions(registry_uri: str, options: Mapping[str, Any]) -> list[ModelVersion]:
    """Every version with a card in a registry, by name and version.

    Args:
        registry_uri: `REGISTRY`, or one model's folder `REGISTRY/<name>`.
        options: fsspec storage options.

    Raises:
        ModelError: there is none, or a card cannot be read.
        StorageError: the registry cannot be listed.
    """
    registry = open_store(registry_uri, options)
    found = [version for name in _folders(registry) for version in _versions_of(registry, name)]
    if not found and registry.uri.count("/") > 2:
        parent, _, name = registry.uri.rpartition("/")
        found = list(_versions_of(open_store(parent, options), name))
    if not found:
        raise ModelError(f"{registry.uri}: no models here; expected <name>/<version>/{CARD_NAME}")
    return found


def read_card(model: Store, version: str) -> dict[str, Any]:
    """The card of one version.

    Raises:
        ModelError: there is no such version, or its card is not one.
    """
    name = f"{version}/{CARD_NAME}"
    try:
        card = json.loads(model.read_bytes(name))
    except NotFoundError as error:
        there = ", ".join(_folders(model)) or "none"
        raise ModelError(f"model {model.uri}: no version {version!r} (there: {there})") from error
    except ValueError as error:
        raise ModelError(f"{model.child_uri(name)} is not a model card: {error}") from error
    if not isinstance(card, dict):
        raise ModelError(f"{model.child_uri(name)} is not a model card: expected fields such as architecture")
    return card


def next_version(model: Store) -> str:
    """One more than the greatest version that is a number; `1` for the first."""
    return str(max((int(name) for name in _folders(model) if name.isdecimal()), default=0) + 1)


def require_new(model: Store, version: str) -> None:
    """Refuse a version that is there, since versions never change, and a name that is no folder's.

    Raises:
        ModelError
    """
    if not _VERSION.fullmatch(version):
        raise ModelError(f"version {version!r}: expected letters, digits and . _ -, such as 2 or 2026-11-21")
    if model.exists(f"{version}/{CARD_NAME}"):
        raise ModelError(f"model {model.uri}: version {version} is there already, and versions never change")


def add_version(model: Store, version: str, files: Mapping[str, bytes]) -> None:
    """Put a version into a registry.

    Args:
        model: the model's folder; need not exist.
        version: its name.
        files: `model.safetensors` and `model.json`; the card is written last, and makes it a version.

    Raises:
        ModelError: the version is there, or its name is no folder's.
        StorageError: the registry cannot be written.
    """
    require_new(model, version)
    try:
        for name in sorted(files, key=lambda name: name == CARD_NAME):
            create_bytes(model, f"{version}/{name}", files[name])
    except ConflictError as error:
        raise ModelError(f"{error.uri} is there already, from another import; name another version") from error


def _folders(store: Store, name: str = "") -> list[str]:
    return [folder.rsplit("/", 1)[-1] for folder in store.list_folders(name)]


def _versions_of(registry: Store, name: str) -> Iterator[ModelVersion]:
    promoted = None
    if registry.exists(f"{name}/{PROMOTED_NAME}"):
        promoted = promoted_version(open_store(registry.child_uri(name), registry.options))
    for version in _folders(registry, name):
        try:
            card = json.loads(registry.read_bytes(f"{name}/{version}/{CARD_NAME}"))
            yield ModelVersion(
                name=name,
                version=version,
                reference=f"{registry.child_uri(name)}@{version}",
                is_promoted=version == promoted,
                architecture=str(card["architecture"]),
                categories=tuple(card["categories"]),
                metrics=dict(card.get("metrics") or {}),
            )
        except NotFoundError:
            continue  # not a version: nothing says what it is
        except (ValueError, KeyError, TypeError) as error:
            uri = registry.child_uri(f"{name}/{version}/{CARD_NAME}")
            raise ModelError(f"{uri} is not a model card: {error!r}") from error
