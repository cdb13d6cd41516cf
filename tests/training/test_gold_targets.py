import json
from typing import Any

import pytest

from batchdet.errors import ConfigError
from batchdet.training.gold import Gold, parse_gold
from batchdet.training.gold_targets import count_gold, gold_targets

CATEGORIES = ("__background__", "dog", "cat")


def gold(*annotations: dict[str, Any]) -> Gold:
    document = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in (3, 1, 2)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}, {"id": 11, "name": "newt"}],
        "annotations": list(annotations),
    }
    return parse_gold(json.dumps(document).encode(), "gold.json")


def test_every_image_has_its_objects_under_the_students_labels() -> None:
    made = gold(
        {"image_id": 3, "category_id": 7, "bbox": [1, 2, 3, 4]},
        {"image_id": 1, "category_id": 9, "bbox": [5, 5, 10, 10]},
        {"image_id": 3, "category_id": 9, "bbox": [0, 0, 2, 2]},
        {"image_id": 3, "category_id": 7, "bbox": [20, 20, 9, 9], "iscrowd": 1},
        {"image_id": 1, "category_id": 11, "bbox": [8, 8, 8, 8]},
    )
    targets = dict(zip(made.names, gold_targets(made, CATEGORIES), strict=True))
    assert {name: one.labels.tolist() for name, one in targets.items()} == {"1.jpg": [1], "2.jpg": [], "3.jpg": [2, 1]}
    assert targets["3.jpg"].boxes.tolist() == [[1, 2, 4, 6], [0, 0, 2, 2]]
    assert targets["3.jpg"].ignored.tolist() == [[20, 20, 29, 29]]
    assert count_gold(made).boxes == {"cat": 1, "dog": 2, "newt": 1}
    assert count_gold(made).num_images == 3


def test_gold_without_objects_has_empty_targets() -> None:
    assert [len(one.labels) for one in gold_targets(gold(), CATEGORIES)] == [0, 0, 0]


def test_gold_of_other_categories_is_refused() -> None:
    with pytest.raises(ConfigError, match="none of its categories is the model's"):
        gold_targets(gold(), ("__background__", "car"))
