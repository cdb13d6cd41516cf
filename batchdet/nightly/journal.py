"""What the nights of an output left behind. Knows no step and what it is about.

OUTPUT/nights/<night>/<step>.json   the outcome of a step that is done; a step without it is done again
OUTPUT/nights/<night>/summary.json  the whole night, written last, and again when the night is gone on with
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from batchdet.errors import ConfigError, NotFoundError, OutputError
from batchdet.storage.filesystem import Store
from batchdet.storage.layout import NIGHTS

SUMMARY = "summary"
_NIGHT = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")

Document = dict[str, Any]


class Journal:
    """The steps of one night.

    Args:
        output: the output folder.
        night: its name; names sort as the nights follow each other.

    Raises:
        ConfigError: the name is none of a folder.
    """

    def __init__(self, output: Store, night: str) -> None:
        if not _NIGHT.fullmatch(night):
            raise ConfigError(f"night {night!r}: expected letters, digits and . _ -, such as 2026-11-21")
        self._output = output
        self.night = night

    @property
    def folder(self) -> str:
        """The night's folder, relative to the output."""
        return f"{NIGHTS}/{self.night}"

    def read(self, step: str) -> Document | None:
        """What a step left; None while it is not done.

        Raises:
            OutputError: it is damaged.
        """
        return _read(self._output, f"{self.folder}/{step}.json")

    def keep(self, step: str, document: Mapping[str, Any]) -> None:
        """Remember that a step is done, and what came of it."""
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1, default=str)
        self._output.write_bytes(f"{self.folder}/{step}.json", f"{text}\n".encode())

    def once(self, step: str, do: Callable[[], Mapping[str, Any]]) -> Document:
        """The outcome of a step, which is done now unless it was."""
        known = self.read(step)
        if known is not None:
            return known
        self.keep(step, do())
        return self.read(step) or {}

    def forget(self, steps: Sequence[str]) -> None:
        """Have these steps done again; the last is forgotten first, as each builds on those before it."""
        for step in reversed(steps):
            self._output.delete(f"{self.folder}/{step}.json")

    def earlier(self) -> Iterator[Document]:
        """Summaries of the nights before this one, the last first.

        Raises:
            OutputError: one is damaged.
        """
        for name in sorted((name for name in self._nights() if name < self.night), reverse=True):
            summary = _read(self._output, f"{NIGHTS}/{name}/{SUMMARY}.json")
            if summary is not None:
                yield summary

    def later(self) -> str | None:
        """The next night that was begun after this one; None where this is the last."""
        return min((name for name in self._nights() if name > self.night), default=None)

    def _nights(self) -> list[str]:
        return [folder.rsplit("/", 1)[-1] for folder in self._output.list_folders(NIGHTS)]


def _read(output: Store, name: str) -> Document | None:
    try:
        found = json.loads(output.read_bytes(name))
    except NotFoundError:
        return None
    except ValueError as error:
        raise OutputError(
            f"{output.child_uri(name)} is damaged ({error}); remove it, and its step is done again"
        ) from error
    if not isinstance(found, dict):
        raise OutputError(f"{output.child_uri(name)} is damaged; remove it, and its step is done again")
    return found
