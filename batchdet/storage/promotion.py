"""Which version of a model is live, and how it came to be. Knows no weights and no measures.

`REGISTRY/<name>/promoted.json`: {"version": the live one, "history": what made it so, oldest first, "refused": what did
not}. It changes only as it was read, so that of two people who promote at once one is told.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from batchdet.errors import ConflictError, ModelError
from batchdet.storage.exclusive import Seen, read_seen, replace_seen
from batchdet.storage.filesystem import Store
from batchdet.storage.registry import PROMOTED_NAME, live_version
from batchdet.storage.versions import read_card

ROLLBACK = "rollback"
"""The `why` of an entry that took the version before the live one back."""


@dataclass(frozen=True, slots=True)
class Promotions:
    """What a `promoted.json` tells.

    Attributes:
        version: the live one; None before the first promotion.
        history: entries of `version`, `at` and `why`, oldest first, with whatever else was recorded.
        refused: entries of `version`, `at` and `reasons`.
        seen: the object they were read from.
    """

    version: str | None
    history: tuple[Mapping[str, Any], ...]
    refused: tuple[Mapping[str, Any], ...]
    seen: Seen

    @property
    def before(self) -> str | None:
        """The version that was live before the live one was promoted; None where none was."""
        stack: list[str] = []
        for entry in self.history:
            if entry.get("why") == ROLLBACK:
                stack = stack[:-1]
            else:
                stack.append(entry["version"])
        return stack[-2] if len(stack) > 1 else None


def read_promotions(model: Store) -> Promotions:
    """What was promoted of the model whose folder the store is.

    Raises:
        ModelError: promoted.json is damaged.
        StorageError: it cannot be read.
    """
    seen = read_seen(model, PROMOTED_NAME)
    if seen.data is None:
        return Promotions(None, (), (), seen)
    try:
        tree = json.loads(seen.data)
        version = live_version(tree)
        history = tuple({**entry, "version": str(entry["version"])} for entry in tree.get("history", ()))
        refused = tuple(dict(entry) for entry in tree.get("refused", ()))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{model.child_uri(PROMOTED_NAME)} is damaged: {error!r}") from error
    return Promotions(version, history or ({"version": version},), refused, seen)


def promote(model: Store, version: str, why: str, known: Promotions, **facts: Any) -> Promotions:
    """Make a version live.

    Args:
        model: the model's folder.
        version: one that is there.
        why: a word for the history, such as `gate`.
        known: what the decision was made on.
        **facts: more for the history, as JSON has it.

    Raises:
        ModelError: there is no such version, or something else was promoted meanwhile.
    """
    read_card(model, version)
    entry = {"version": version, "at": _now(), "why": why, **facts}
    return _write(model, Promotions(version, (*known.history, entry), known.refused, known.seen))


def refuse(model: Store, version: str, reasons: tuple[str, ...], known: Promotions, **facts: Any) -> Promotions:
    """Record that a version was measured and not promoted; see `promote`."""
    entry = {"version": version, "at": _now(), "reasons": list(reasons), **facts}
    return _write(model, Promotions(known.version, known.history, (*known.refused, entry), known.seen))


def roll_back(model: Store) -> Promotions:
    """Make the version live again that was before the live one was promoted.

    Raises:
        ModelError: there was none, it is gone, or something else was promoted meanwhile.
    """
    known = read_promotions(model)
    if known.before is None:
        raise ModelError(f"model {model.uri}: nothing was live before {known.version or 'a first promotion'}")
    return promote(model, known.before, ROLLBACK, known, instead_of=known.version)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(model: Store, promotions: Promotions) -> Promotions:
    tree = {"version": promotions.version, "history": promotions.history}
    if promotions.refused:
        tree["refused"] = promotions.refused
    data = (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode()
    try:
        replace_seen(model, PROMOTED_NAME, data, promotions.seen)
    except ConflictError as error:
        raise ModelError(
            f"model {model.uri}: another version was promoted meanwhile; look at it and try again"
        ) from error
    return read_promotions(model)
