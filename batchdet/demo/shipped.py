"""Where the checkpoint lies that comes with the package. Knows nothing of what is in it."""

from importlib.resources import files
from pathlib import Path


def shipped_model() -> Path:
    """The model's folder in the shipped registry: `<version>/` folders beside `promoted.json`; a model reference."""
    return Path(str(files("batchdet.demo"))) / "registry" / "scenes"
