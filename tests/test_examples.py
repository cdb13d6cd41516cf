"""What README.md and deploy/ show is true: job files load, commands parse, fields and flags are there."""

import re
import shlex
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from batchdet.analysis.config import AlarmConfig, DiffConfig, load_diff
from batchdet.cli.main import app
from batchdet.cli.options import read_settings
from batchdet.config import JobConfig, load_job
from batchdet.nightly.job import NightlyConfig, load_nightly
from batchdet.training.job import RetrainConfig, load_retrain

ROOT = Path(__file__).parents[1]
TEXTS = {name: (ROOT / name).read_text() for name in ("README.md", "deploy/README.md")}
FOREIGN_FLAGS = {"--working-dir", "--namespace"}
"""Of other programs."""


def blocks(language: str) -> list[tuple[str, str]]:
    """Name of the file and line, and text, of every block."""
    found = []
    for name, text in TEXTS.items():
        for block in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            found.append((f"{name}:{text[: block.start()].count(chr(10)) + 2}", block[1]))
    return found


def loader(tree: dict[str, Any]) -> Callable[[Path, dict[str, Any]], object]:
    """Whose file this is, by a field that no other has."""
    if "job" in tree:
        return load_nightly
    if "registry" in tree:
        return load_retrain
    return load_diff if set(tree) & set(AlarmConfig.model_fields) else load_job


def is_job(text: str) -> bool:
    """Whether a YAML file under deploy/ is one of ours."""
    trees = list(yaml.safe_load_all(text))
    return len(trees) == 1 and isinstance(trees[0], dict) and bool({"source", "job"} & set(trees[0]))


@pytest.mark.parametrize("text", [pytest.param(text, id=place) for place, text in blocks("yaml")])
def test_every_yaml_example_is_a_whole_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "example.yaml"
    path.write_text(text)
    loader(yaml.safe_load(text))(path, {})


@pytest.mark.parametrize("path", sorted(path for path in ROOT.glob("deploy/**/*.yaml") if is_job(path.read_text())))
def test_every_job_file_is_a_job(path: Path) -> None:
    loader(yaml.safe_load(path.read_text()))(path, {})


def test_every_kind_of_file_has_an_example() -> None:
    shown = [loader(yaml.safe_load(text)) for _, text in blocks("yaml")]
    assert sorted(load.__name__ for load in shown) == ["load_diff", "load_job", "load_nightly", "load_retrain"]


def test_the_job_example_names_every_field() -> None:
    (shown,) = [yaml.safe_load(text) for _, text in blocks("yaml") if loader(yaml.safe_load(text)) is load_job]
    assert {field for field in fields(JobConfig) if not field.startswith("publish.")} <= set(dotted(shown))


def test_the_alarms_shown_are_the_defaults() -> None:
    (shown,) = [yaml.safe_load(text) for _, text in blocks("yaml") if loader(yaml.safe_load(text)) is load_diff]
    assert AlarmConfig.model_validate(shown) == AlarmConfig()
    assert set(shown) == set(AlarmConfig.model_fields)


def commands() -> Iterator[tuple[str, list[str]]]:
    """The words after `batchdet`, of every command shown, also where a door of jobs/ stands for it."""
    for place, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            doors = [at for at, word in enumerate(words) if re.fullmatch(r"jobs/\w+\.py", word)]
            for at in doors:
                yield place, [Path(words[at]).stem, *words[at + 1 :]]
            for at, word in enumerate(words):
                if word == "batchdet" and words[at - 1 : at] in ([], ["&&"]):
                    yield place, words[at + 1 :]


@pytest.mark.parametrize("words", [pytest.param(words, id=f"{place} {words[0]}") for place, words in commands()])
def test_every_command_shown_is_one(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    given = command.make_context("batchdet", words).params
    for field in read_settings(given.get("settings")):
        assert field in FIELDS, field


def fields(form: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of all fields below a section."""
    for name, field in form.model_fields.items():
        yield f"{path}{name}"
        for inner in (field.annotation, *typing.get_args(field.annotation)):
            if hasattr(inner, "model_fields"):
                yield from fields(inner, f"{path}{name}.")


def dotted(tree: dict[str, Any], path: str = "") -> Iterator[str]:
    """Dotted paths of all values of a job."""
    for name, value in tree.items():
        yield f"{path}{name}"
        if isinstance(value, dict):
            yield from dotted(value, f"{path}{name}.")


FIELDS = {
    *(field for form in (JobConfig, DiffConfig, NightlyConfig, RetrainConfig) for field in fields(form)),
    "publish.catalog.type",
    "publish.catalog.uri",
}


def test_every_field_named_in_prose_is_one() -> None:
    sections = {field.split(".")[0] for field in FIELDS if "." in field}
    named = {name for text in TEXTS.values() for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)\b[^`/]*`", text)}
    named = {name for name in named if name.split(".")[0] in sections}
    assert len(named) > 10
    assert named <= FIELDS


def test_every_flag_named_in_prose_is_one() -> None:
    command: Any = typer.main.get_command(app)
    flags: set[str] = set()
    waiting = [command]
    for each in waiting:
        waiting += getattr(each, "commands", {}).values()
        flags |= {flag for param in each.params for flag in param.opts}
    named = set(re.findall(r"`[^`\n]*?(--[a-z][a-z-]+)", TEXTS["README.md"]))
    assert len(named) > 10
    assert named - FOREIGN_FLAGS <= flags


def test_every_command_is_shown() -> None:
    command: Any = typer.main.get_command(app)
    shown = set(re.findall(r"\bbatchdet (\w+)", TEXTS["README.md"]))
    assert set(command.commands) <= shown
