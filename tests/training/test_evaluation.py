"""Measures of detections: pycocotools on its own json is the oracle; confusion by hand."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet.errors import ConfigError
from batchdet.training.confusion import NOTHING, count_confusion
from batchdet.training.curves import draw_precision_recall
from batchdet.training.evaluation import Found, evaluate_detections, restrict
from batchdet.training.gold import Gold, read_gold
from tests.training.gold_sets import assert_is_oracle, coco_tree, found_of, gold_of, oracle

CATEGORIES = ["cat", "dog", "emu"]


def perturbed(gold: Gold, seed: int) -> Found:
    """What a mediocre detector would say: objects missed, moved, doubled, taken for another, and things not there."""
    rng = np.random.default_rng(seed)
    again = np.concatenate([np.flatnonzero(rng.random(len(gold.boxes)) < share) for share in (0.8, 0.2)])
    sides = (gold.boxes[again, 2:] - gold.boxes[again, :2])[:, [0, 1, 0, 1]]
    boxes = gold.boxes[again] + rng.normal(0, 0.08, (len(again), 4)) * sides
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = np.where(
        rng.random(len(again)) < 0.9, gold.labels[again], rng.integers(0, len(gold.categories), len(again))
    )
    images = np.where(rng.random(len(again)) < 0.9, gold.images[again], rng.integers(0, len(gold.names), len(again)))
    # Of few levels, so that ties occur.
    scores = rng.integers(1, 60, len(again)).astype(np.float32) / 64
    order = np.lexsort((-scores, images))
    return Found(images[order], labels[order], boxes[order].astype(np.float32), scores[order], scores[order] >= 0.5)


def result_rows(tree: dict[str, Any], gold: Gold, found: Found) -> list[dict[str, Any]]:
    """The detections with the json's own ids."""
    image_ids = {image["file_name"]: image["id"] for image in tree["images"]}
    category_ids = {category["name"]: category["id"] for category in tree["categories"]}
    return [
        {
            "image_id": image_ids[gold.names[image]],
            "category_id": category_ids[gold.categories[label]],
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "score": score,
        }
        for image, label, box, score in zip(
            found.images.tolist(), found.labels.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("seed", [1, 2])
def test_real_labels_are_measured_as_pycocotools_does(data_folder: Path, seed: int) -> None:
    path = data_folder / "bccd" / "annotations.json"
    tree, gold = json.loads(path.read_text()), read_gold(str(path), {})
    found = perturbed(gold, seed)
    score = evaluate_detections(gold, found).score
    assert 0.2 < score.map < 0.8, "a measure worth comparing"
    assert_is_oracle(asdict(score), oracle(tree, result_rows(tree, gold, found)))
    assert (score.num_images, score.num_objects) == (364, 4886)


def test_part_of_the_images_is_measured_as_pycocotools_does(data_folder: Path) -> None:
    path = data_folder / "bccd" / "annotations.json"
    tree, gold = json.loads(path.read_text()), read_gold(str(path), {})
    chosen = np.arange(len(gold.names)) % 5 == 0
    part, found = restrict(gold, perturbed(gold, 3), chosen, gold.categories)
    ids = [image["id"] for image in sorted(tree["images"], key=lambda image: image["id"])]
    expected = oracle(
        tree, result_rows(tree, part, found), [number for number, keep in zip(ids, chosen, strict=True) if keep]
    )
    assert_is_oracle(asdict(evaluate_detections(part, found).score), expected)


TWO = gold_of(
    coco_tree(
        {"a.jpg": [("cat", [0, 0, 10, 10]), ("dog", [100, 100, 50, 50])], "b.jpg": [("cat", [0, 0, 40, 40])]},
        CATEGORIES,
    )
)


def test_categories_left_out_take_their_detections_along() -> None:
    gold, found = restrict(TWO, perturbed(TWO, 4), np.ones(2, np.bool_), ["dog", "emu"])
    assert gold.categories == ("dog", "emu")
    assert gold.labels.tolist() == [0]
    full = perturbed(TWO, 4)
    kept = full.labels > 0
    assert kept.any()
    assert not kept.all()
    assert found.labels.tolist() == (full.labels[kept] - 1).tolist()
    assert found.scores.tolist() == full.scores[kept].tolist()


BOXES = st.tuples(*[st.integers(0, 60).map(float)] * 2, *[st.integers(1, 200).map(float)] * 2)
IMAGES = ["a.jpg", "b.jpg", "c.jpg"]


@settings(max_examples=60, deadline=None)
@given(
    objects=st.lists(st.tuples(st.sampled_from(IMAGES), st.sampled_from(CATEGORIES), BOXES), min_size=1, max_size=12),
    crowds=st.sets(st.tuples(st.sampled_from(IMAGES), st.integers(0, 3)), max_size=2),
    claims=st.lists(
        st.tuples(st.sampled_from(IMAGES), st.sampled_from(CATEGORIES), BOXES, st.integers(1, 8)),
        min_size=1,
        max_size=20,
    ),
)
def test_any_labels_are_measured_as_pycocotools_does(objects: Any, crowds: Any, claims: Any) -> None:
    tree = coco_tree(
        {name: [(category, box) for image, category, box in objects if image == name] for name in IMAGES},
        CATEGORIES,
        list(crowds),
    )
    gold = gold_of(tree)
    rows = [(image, category, (x, y, x + w, y + h), level / 8) for image, category, (x, y, w, h), level in claims]
    found = found_of(gold, rows)
    if gold.crowd.all():
        with pytest.raises(ConfigError, match="holds no object"):
            evaluate_detections(gold, found)
        return
    assert_is_oracle(asdict(evaluate_detections(gold, found).score), oracle(tree, result_rows(tree, gold, found)))


def test_nothing_found_is_nothing_not_undefined() -> None:
    score = evaluate_detections(TWO, found_of(TWO, [])).score
    assert (score.map, score.map_50, score.ar_100) == (0.0, 0.0, 0.0)
    assert score.per_category == {"cat": 0.0, "dog": 0.0}, "no emu was to be found"
    assert score.support == {"cat": 2, "dog": 1}
    assert (score.map_small, score.map_large) == (0.0, None)


def test_a_ranking_says_which_detections_are_true() -> None:
    found = found_of(
        TWO,
        [
            ("a.jpg", "cat", [0, 0, 10, 9], 0.6),
            ("a.jpg", "cat", [0, 0, 10, 10], 0.4),
            ("b.jpg", "cat", [200, 0, 240, 40], 0.9),
            ("b.jpg", "cat", [0, 0, 40, 40], 0.5),
        ],
    )
    ranking = evaluate_detections(TWO, found).rankings["cat"]
    assert np.round(ranking.scores, 3).tolist() == [0.9, 0.6, 0.5, 0.4]
    assert ranking.is_true.tolist() == [False, True, True, False], "one object counts once"
    assert ranking.num_objects == 2


def test_detections_on_a_crowd_are_neither_true_nor_false() -> None:
    gold = gold_of(coco_tree({"a.jpg": [("cat", [0, 0, 9, 9]), ("cat", [50, 50, 90, 90])]}, ["cat"], [("a.jpg", 1)]))
    found = found_of(gold, [("a.jpg", "cat", [60, 60, 70, 70], 0.9), ("a.jpg", "cat", [0, 0, 9, 9], 0.5)])
    evaluation = evaluate_detections(gold, found)
    assert evaluation.rankings["cat"].is_true.tolist() == [True]
    assert evaluation.score.map == pytest.approx(1.0)


def test_confusion_pairs_across_categories() -> None:
    found = found_of(
        TWO,
        [
            ("a.jpg", "dog", [0, 0, 10, 10], 0.9),
            ("a.jpg", "emu", [300, 300, 310, 310], 0.8),
            ("a.jpg", "dog", [100, 100, 150, 149], 0.7),
            ("b.jpg", "cat", [0, 0, 40, 40], 0.4),
        ],
    )
    confusion = count_confusion(TWO, found)
    expected = {("cat", "dog"): 1, (NOTHING, "emu"): 1, ("dog", "dog"): 1, ("cat", NOTHING): 1}
    names = [*confusion.categories, NOTHING]
    got = {
        (names[row], names[column]): int(confusion.counts[row, column]) for row, column in np.argwhere(confusion.counts)
    }
    assert got == expected, "the cat of b.jpg was found under the policy's threshold, so it is missed"
    lines = confusion.to_csv().splitlines()
    assert lines[0] == "gold \\ detected,cat,dog,emu,(nothing)"
    assert lines[1] == "cat,0,1,0,1"
    assert len(lines) == 5


def test_every_object_and_every_detection_is_in_the_confusion_once() -> None:
    rng = np.random.default_rng(5)
    names = [f"{number}.jpg" for number in range(20)]
    objects = {
        name: [(CATEGORIES[rng.integers(3)], [*rng.uniform(0, 300, 2), *rng.uniform(20, 90, 2)]) for _ in range(4)]
        for name in names
    }
    gold = gold_of(coco_tree(objects, CATEGORIES))
    found = perturbed(gold, 6)
    counts = count_confusion(gold, found).counts
    assert counts[:-1].sum(axis=1).tolist() == np.bincount(gold.labels, minlength=3).tolist()
    assert counts[:, :-1].sum(axis=0).tolist() == np.bincount(found.labels[found.accepted], minlength=3).tolist()


def test_the_plot_is_a_picture() -> None:
    curves = {f"category {number}": np.linspace(1, 0, 101) for number in range(25)}
    png = draw_precision_recall(curves, dict.fromkeys(curves, 3))
    assert png.startswith(b"\x89PNG")
    assert len(png) > 10_000
