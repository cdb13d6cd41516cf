from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from batchdet.config import PolicyConfig
from batchdet.errors import ConfigError, SourceError
from batchdet.records import FailedImage, ImageFacts, ImageOutcome, ImageRef, LabelledImage
from batchdet.storage.filesystem import Store, open_store
from batchdet.storage.ledger import Ledger
from batchdet.storage.plan import read_shard
from batchdet.training.config import BandConfig, PseudoLabelConfig
from batchdet.training.pseudo_labels import PseudoLabels, read_pseudo_labels, row_target
from tests.analysis.outputs import CATEGORIES, close, open_run, run_id

KEEP = PseudoLabelConfig(bands=BandConfig(accept=0.7, ignore=0.3), empty_images="keep")
PLAIN = PolicyConfig(score_threshold=0.5)


@dataclass(frozen=True)
class Seen:
    """What a run says of an image: (label, score), each box a place further right; or a failure."""

    found: tuple[tuple[int, float], ...] = ()
    has_failed: bool = False
    rejected: int | None = None

    def outcome(self, ref: ImageRef) -> ImageOutcome:
        if self.has_failed:
            return FailedImage(ref, "decode", "truncated", "made to fail")
        scores = np.array([score for _, score in self.found], np.float32)
        boxes = np.array([[10 * n, 0, 10 * n + 8, 8] for n in range(len(scores))], np.float32).reshape(-1, 4)
        accepted = scores >= np.float32(PLAIN.score_threshold)
        if self.rejected is not None:
            accepted[self.rejected] = False
        labels = np.array([label for label, _ in self.found], np.int64)
        return LabelledImage(ref, ImageFacts(width=100, height=80), boxes, scores, labels, accepted, False)


def label(
    output: Store, number: int, images: Mapping[str, Seen], status: str = "complete", policy: PolicyConfig = PLAIN
) -> str:
    plan = open_run(output, number, dict.fromkeys(images, f"etag{number}"), 100, policy)
    ledger = Ledger(output)
    for shard_id in range(plan.num_shards):
        shard = read_shard(output, plan, shard_id)
        ledger.commit(plan, shard, [images[ref.uri].outcome(ref) for ref in shard.images])
    close(output, plan, status)
    return plan.run_id


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "labels"), {})


def read(*outputs: Store, rules: PseudoLabelConfig = KEEP, runs: tuple[str, ...] = (), **rest: Any) -> PseudoLabels:
    return read_pseudo_labels(outputs, runs, **({"categories": CATEGORIES, "rules": rules, "seed": 0} | rest))


def rows(labels: PseudoLabels) -> dict[str, list[tuple[int, str]]]:
    """Label and band of each box, by image."""
    return {row["image_uri"]: list(zip(row["labels"], row["band"], strict=True)) for row in labels.table.to_pylist()}


def test_scores_are_cut_into_three_bands(output: Store) -> None:
    seen = Seen(((1, 0.9), (2, 0.7), (1, 0.6999), (3, 0.3), (2, 0.2999)))
    label(output, 1, {"memory://a": seen})
    found = read(output)
    assert rows(found) == {"memory://a": [(1, "accept"), (2, "accept"), (1, "ignore"), (3, "ignore")]}
    (row,) = found.table.to_pylist()
    assert row["boxes"][1] == [10.0, 0.0, 18.0, 8.0]
    assert row["scores"] == pytest.approx([0.9, 0.7, 0.6999, 0.3])
    assert (row["etag"], row["width"], row["height"], row["run_id"]) == ("etag1", 100, 80, run_id(1))
    assert found.counts.boxes == {"cat": 1, "dog": 1}
    assert found.run_ids == (run_id(1),)


def test_bands_of_a_category_are_its_own(output: Store) -> None:
    rules = KEEP.model_copy(update={"category_bands": {"it's": BandConfig(accept=0.95, ignore=0.9)}})
    label(output, 1, {"memory://a": Seen(((3, 0.92), (1, 0.92), (3, 0.8)))})
    assert rows(read(output, rules=rules)) == {"memory://a": [(3, "ignore"), (1, "accept")]}


def test_what_the_policy_refused_is_no_pseudo_label(output: Store) -> None:
    label(output, 1, {"memory://a": Seen(((1, 0.9), (1, 0.8)), rejected=0)})
    assert rows(read(output)) == {"memory://a": [(1, "ignore"), (1, "accept")]}


def test_the_latest_row_of_an_image_in_complete_runs_counts(output: Store) -> None:
    names = ("memory://a", "memory://b", "memory://c")
    label(output, 1, {name: Seen(((1, 0.9),)) for name in names})
    label(output, 2, {"memory://a": Seen(((2, 0.9),)), "memory://b": Seen(has_failed=True)})
    label(output, 3, {"memory://c": Seen(((2, 0.9),))}, status="partial")
    assert rows(read(output)) == {"memory://a": [(2, "accept")], "memory://c": [(1, "accept")]}
    assert rows(read(output, runs=(run_id(1),))) == {name: [(1, "accept")] for name in names}


def test_of_several_outputs_the_latest_run_counts(tmp_path: Path) -> None:
    first, second = (open_store(str(tmp_path / name), {}) for name in ("one", "two"))
    cat, dog = Seen(((1, 0.9),)), Seen(((2, 0.9),))
    label(first, 5, {"memory://a": cat, "memory://b": cat, "memory://d": Seen(has_failed=True)})
    label(second, 4, {"memory://a": dog, "memory://c": dog, "memory://d": cat})
    expected = {"memory://a": [(1, "accept")], "memory://b": [(1, "accept")], "memory://c": [(2, "accept")]}
    assert rows(read(first, second)) == rows(read(second, first)) == expected
    assert read(first, second).run_ids == (run_id(4), run_id(5))


def test_labels_are_those_of_the_student(output: Store) -> None:
    label(output, 1, {"memory://a": Seen(((1, 0.9), (2, 0.9), (3, 0.9)))})
    assert rows(read(output, categories=("__background__", "newt", "it's", "cat"))) == {
        "memory://a": [(3, "accept"), (2, "accept")]
    }


def test_images_without_a_pseudo_label_are_kept_dropped_or_sampled(output: Store) -> None:
    full = {f"memory://full{n:02}": Seen(((1, 0.9),)) for n in range(4)}
    empty = {f"memory://empty{n:03}": Seen(((1, 0.5),) if n % 2 else ()) for n in range(200)}
    label(output, 1, full | empty)

    def kept(kind: str, share: float = 0.25, seed: int = 0) -> set[str]:
        rules = KEEP.model_copy(update={"empty_images": kind, "empty_share": share})
        found = read(output, rules=rules, seed=seed)
        assert found.counts.num_images == 204
        assert found.table.column("image_uri").to_pylist() == sorted(rows(found))
        return set(rows(found))

    assert kept("keep") == kept("sample", 1.0) == set(full | empty)
    assert kept("drop") == kept("sample", 0.0) == set(full)
    some = kept("sample")
    assert some == kept("sample")
    assert 30 < len(some - set(full)) < 70
    assert some > set(full)
    assert some != kept("sample", seed=1)
    assert some <= kept("sample", 0.5)


def test_what_cannot_be_learned_from_is_refused(output: Store, tmp_path: Path) -> None:
    label(output, 1, {"memory://a": Seen(((1, 0.4),))})
    with pytest.raises(SourceError, match="none of 1 labelled images has a box in the accept band"):
        read(output)
    with pytest.raises(ConfigError, match=f"source.runs: {run_id(9)} is not a complete run of file://"):
        read(output, runs=(run_id(9),))
    with pytest.raises(ConfigError, match=r"cat is accepted from 0\.4, but the policy of run .* from 0\.5"):
        read(output, rules=PseudoLabelConfig(bands=BandConfig(accept=0.4)))
    with pytest.raises(ConfigError, match=r"category_bands\.cow: the student has no such category"):
        read(output, rules=PseudoLabelConfig(category_bands={"cow": BandConfig()}))
    with pytest.raises(SourceError, match="no complete run in"):
        read(open_store(str(tmp_path / "nothing"), {}))


def test_a_row_becomes_a_target(output: Store) -> None:
    label(output, 1, {"memory://a": Seen(((1, 0.9), (3, 0.8), (2, 0.5))), "memory://b": Seen()})
    first, second = (row_target(row, KEEP) for row in read(output).table.to_pylist())
    assert first.labels.tolist() == [1, 3]
    assert first.boxes.tolist() == [[0, 0, 8, 8], [10, 0, 18, 8]]
    assert first.ignored.tolist() == [[20, 0, 28, 8]]
    assert first.weights.tolist() == [1.0, 1.0]
    assert (len(second.labels), len(second.ignored)) == (0, 0)
    weighed = row_target(read(output).table.to_pylist()[0], KEEP.model_copy(update={"weigh_by_score": True}))
    torch.testing.assert_close(weighed.weights, torch.tensor([0.9, 0.8]))
