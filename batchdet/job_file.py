"""A job of a YAML file and overriding values, and its mistakes in words. Knows no section by name."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from batchdet.errors import ConfigError
from batchdet.fields import Section

Config = TypeVar("Config", bound=Section)


class _OnceLoader(yaml.SafeLoader):
    """Refuses a field that is given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for place, key in enumerate(keys):
            if key.value in [earlier.value for earlier in keys[:place]]:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value} is given twice")
        return super().construct_mapping(node, deep)


def load_config(form: type[Config], path: str | Path | None, overrides: dict[str, Any]) -> Config:
    """Build a job from a YAML file and overriding values by dotted path (`policy.score_threshold`).

    Args:
        form: the kind of job.
        path: the file; None where the overrides say it all.
        overrides: dotted path to value.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is out of range; names the field.
    """
    tree = read_yaml(path) if path is not None else {}
    return build(form, with_overrides(tree, overrides))


def read_yaml(path: str | Path, kind: str = "job file") -> dict[str, Any]:
    """The fields of a YAML file.

    Args:
        path: of the file.
        kind: what to call it.

    Raises:
        ConfigError: it cannot be read, or holds no fields.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise ConfigError(f"{kind} {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{kind} {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{kind} {path}: expected fields, got {type(tree).__name__}")
    return tree


def with_overrides(tree: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The fields with values by dotted path set in them, the given tree being used up.

    Raises:
        ConfigError: a path leads through a single value.
    """
    for dotted, value in overrides.items():
        _set_dotted(tree, dotted, value)
    return tree


def build(form: type[Config], tree: dict[str, Any], where: str = "") -> Config:
    """The job of plain fields.

    Args:
        form: the kind of job.
        tree: its fields.
        where: what to say before a mistake.

    Raises:
        ConfigError: a key is unknown, or a value is out of range; names the field.
    """
    try:
        return form.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(where + _first_problem(error, tree)) from error


def _set_dotted(tree: dict[str, Any], dotted: str, value: object) -> None:
    *parents, leaf = dotted.split(".")
    node = tree
    for name in parents:
        child = node.setdefault(name, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{dotted}: {name} is a single value, it has no fields")
        node = child
    node[leaf] = value


def _first_problem(error: ValidationError, tree: dict[str, Any]) -> str:
    first, *others = error.errors()
    where = _field_path(first["loc"], tree, is_missing=first["type"] == "missing")
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown field"
    if first["type"] == "missing":
        return f"{where}: required; give it in the job file, as a flag or with --set {where}=…"
    if first["type"] == "value_error":
        return str(first["msg"]).removeprefix("Value error, ")
    branches = [first, *(other for other in others if _field_path(other["loc"], tree, is_missing=False) == where)]
    return f"{where}: {' or '.join(branch['msg'] for branch in branches)} (got {first['input']!r})"


def _field_path(loc: tuple[int | str, ...], tree: dict[str, Any], is_missing: bool) -> str:
    """The dotted field of an error: what of its place the job has, without the union branches pydantic adds."""
    node: Any = tree
    path = []
    for part in loc[:-1] if is_missing else loc:
        is_named = isinstance(node, dict) and part in node
        if is_named or (isinstance(node, list) and isinstance(part, int) and part < len(node)):
            node = node[part]
            path.append(part)
    return ".".join(map(str, [*path, loc[-1]] if is_missing else path))
