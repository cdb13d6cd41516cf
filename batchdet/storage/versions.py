"""The models and versions of a registry, as their cards tell. Knows no weights."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from batchdet.errors import ModelError, NotFoundError
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.registry import CARD_NAME, PROMOTED_NAME, promoted_version


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
