"""Which version is live: history, refusals, the way back, and two people at once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from batchdet.errors import ModelError
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.promotion import promote, read_promotions, refuse, roll_back
from batchdet.storage.registry import promoted_version
from batchdet.storage.versions import add_version, next_version, read_card
from tests.servers.s3 import Bucket

CARD = json.dumps({"architecture": "ssd300_vgg16", "categories": ["__background__", "disc"]}).encode()
FILES = {"model.safetensors": b"weights", "model.json": CARD}


@pytest.fixture(params=["file", "memory", "moto"])
def model(request: pytest.FixtureRequest, tmp_path: Path, reach: Callable[[Bucket], Bucket]) -> Store:
    """The folder of a model with versions 1, 2 and 3, none live."""
    uri = {"file": str(tmp_path / "shapes"), "memory": f"memory://{tmp_path.name}-{id(request)}/shapes"}.get(
        request.param
    )
    if uri is None:
        uri = f"{reach(request.getfixturevalue('new_bucket_on')('moto')).uri}/shapes"
    store = open_store(uri, {})
    for version in ("1", "2", "3"):
        add_version(store, version, FILES)
    return store


def test_the_live_version_is_the_one_promoted_last(model: Store) -> None:
    known = read_promotions(model)
    assert (known.version, known.history, known.before) == (None, (), None)
    known = promote(model, "1", "first", known)
    known = promote(model, "3", "gate", known, map=0.5)
    assert promoted_version(model) == "3"
    again = read_promotions(model)
    assert again == known
    assert [(entry["version"], entry["why"]) for entry in again.history] == [("1", "first"), ("3", "gate")]
    assert (again.history[1]["map"], again.before) == (0.5, "1")
    assert all(entry["at"].endswith("+00:00") for entry in again.history)


def test_a_refusal_is_kept_and_changes_nothing(model: Store) -> None:
    known = promote(model, "1", "first", read_promotions(model))
    known = refuse(model, "2", ("mAP falls",), known, map=0.1)
    assert (known.version, promoted_version(model)) == ("1", "1")
    assert [(entry["version"], entry["reasons"]) for entry in known.refused] == [("2", ["mAP falls"])]
    assert promote(model, "3", "gate", known).refused == known.refused


def test_rolling_back_goes_back_step_by_step_and_is_told(model: Store) -> None:
    with pytest.raises(ModelError, match="nothing was live before"):
        roll_back(model)
    for version in ("1", "2", "3"):
        promote(model, version, "gate", read_promotions(model))
    assert roll_back(model).version == "2"
    assert roll_back(model).version == "1"
    with pytest.raises(ModelError, match="nothing was live before 1"):
        roll_back(model)
    promote(model, "3", "gate", read_promotions(model))
    assert roll_back(model).version == "1"
    whys = [(entry["version"], entry["why"]) for entry in read_promotions(model).history]
    assert whys[3:] == [("2", "rollback"), ("1", "rollback"), ("3", "gate"), ("1", "rollback")]


def test_of_two_at_once_one_is_told(model: Store) -> None:
    mine = theirs = promote(model, "1", "first", read_promotions(model))
    promote(model, "2", "gate", theirs)
    with pytest.raises(ModelError, match="another version was promoted meanwhile"):
        promote(model, "3", "gate", mine)
    assert promoted_version(model) == "2"


def test_what_is_not_there_is_not_promoted(model: Store) -> None:
    with pytest.raises(ModelError, match=r"no version '9' \(there: 1, 2, 3\)"):
        promote(model, "9", "first", read_promotions(model))


def test_versions_never_change(model: Store) -> None:
    assert next_version(model) == "4"
    with pytest.raises(ModelError, match="version 1 is there already, and versions never change"):
        add_version(model, "1", {**FILES, "model.safetensors": b"others"})
    assert model.read_bytes("1/model.safetensors") == b"weights"
    add_version(model, "2026-11-21", FILES)
    assert next_version(model) == "4"


def test_a_half_import_is_finished_by_its_own_and_refused_to_others(model: Store) -> None:
    model.write_bytes("5/model.safetensors", b"weights")
    with pytest.raises(ModelError, match=r"5/model\.safetensors is there already, from another import"):
        add_version(model, "5", {**FILES, "model.safetensors": b"others"})
    assert not model.exists("5/model.json")
    add_version(model, "5", FILES)
    assert read_card(model, "5")["architecture"] == "ssd300_vgg16"


@pytest.mark.parametrize("version", ["", "a b", "../x", "a/b", ".hidden", "-x"])
def test_a_version_is_a_plain_name(tmp_path: Path, version: str) -> None:
    with pytest.raises(ModelError, match="expected letters, digits"):
        add_version(open_store(str(tmp_path), {}), version, FILES)


def test_a_file_from_before_histories_is_read(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), {})
    add_version(store, "2", FILES)
    store.write_bytes("promoted.json", b'{"version": 1}')
    known = read_promotions(store)
    assert (known.version, known.history) == ("1", ({"version": "1"},))
    assert promote(store, "2", "gate", known).before == "1"


NO_VERSION = ["", "[]", '{"history": []}', '{"version": null}', '{"version": ""}', '{"version": ["1"]}']


@pytest.mark.parametrize("text", [*NO_VERSION, '{"version": "1", "history": [{}]}', '{"version": "1", "refused": [1]}'])
def test_damage_is_said(tmp_path: Path, text: str) -> None:
    store = open_store(str(tmp_path), {})
    store.write_bytes("promoted.json", text.encode())
    with pytest.raises(ModelError, match=r"promoted\.json is damaged"):
        read_promotions(store)


@pytest.mark.parametrize("text", NO_VERSION)
def test_nothing_is_live_by_a_damaged_file(tmp_path: Path, text: str) -> None:
    store = open_store(str(tmp_path), {})
    store.write_bytes("promoted.json", text.encode())
    with pytest.raises(ModelError, match=r"promoted\.json does not name a version"):
        promoted_version(store)


def test_cards_are_read(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), {})
    with pytest.raises(ModelError, match=r"no version '1' \(there: none\)"):
        read_card(store, "1")
    for text in (b"{", b"[]"):
        store.write_bytes("1/model.json", text)
        with pytest.raises(ModelError, match=r"1/model\.json is not a model card"):
            read_card(store, "1")
