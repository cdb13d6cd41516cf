"""Exported parts, kept on this machine and made once per model. Knows no format and no backend."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from filelock import FileLock

from batchdet.engine.backends.backend import BackendError
from batchdet.engine.parts import Part

FORMAT = 2
"""Of the kept graphs; another one whenever a part's module or an exporter's settings change."""
DIGEST = "sha256"
"""File with the digest of the others; written last."""


def graphs_folder(model_digest: str) -> Path | None:
    """Where graphs of a model lie on this machine: `$XDG_CACHE_HOME/batchdet/graphs/<digest>`; None without a home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return cache / "batchdet" / "graphs" / model_digest.removeprefix("sha256:")


def kept(name: str, part: Part, folder: Path | None, made_by: str, make: Callable[[Part, Path], None]) -> Path:
    """The folder of a part's exported files, made now where it is not there yet or not as it was written.

    Processes of this machine that need the same graph wait for the first of them.

    Args:
        name: of the part.
        part: the part.
        folder: of the model's graphs; None where there is no place for them.
        made_by: the exporter and its version; another one makes another graph, as does another torch.
        make: writes the files into an empty folder.

    Raises:
        BackendError: the folder cannot be written, or others may write there.
    """
    if folder is None:
        raise BackendError("no folder for exported graphs; set XDG_CACHE_HOME or HOME")
    code = f"{FORMAT} {made_by} {torch.__version__} {torchvision.__version__}"
    target = folder / f"{name}-{hashlib.sha256(code.encode()).hexdigest()[:16]}"
    try:
        if folder.is_dir():
            _require_own(folder)
        if _is_whole(target):
            return target
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not _is_whole(target):
                _make(part, target, make)
    except OSError as error:
        raise BackendError(f"{folder}: {error.strerror or error}; set XDG_CACHE_HOME to a folder of yours") from error
    return target


def _require_own(folder: Path) -> None:
    """Refuse a folder in which another user could have put a graph, and with it other rows."""
    if not hasattr(os, "getuid"):
        return
    status = folder.stat()
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & 0o022:
        raise BackendError(f"{folder}: others may write there; set XDG_CACHE_HOME to a folder of yours")


def _make(part: Part, target: Path, make: Callable[[Part, Path], None]) -> None:
    scratch = target.with_suffix(".part")
    for remains in (target, scratch):
        shutil.rmtree(remains, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    try:
        make(part, scratch)
        (scratch / DIGEST).write_text(_digest(scratch), encoding="ascii")
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_whole(target: Path) -> bool:
    """Whether the files are there, and what they were when they were made."""
    try:
        return (target / DIGEST).read_text(encoding="ascii") == _digest(target)
    except FileNotFoundError:
        return False


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.name != DIGEST):
        with path.open("rb") as file:
            total.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
