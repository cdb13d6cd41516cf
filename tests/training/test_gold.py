"""Gold labels are what the file says, joined to images by name; what is wrong is said in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchdet.errors import ConfigError
from batchdet.training.gold import find_images, parse_gold, read_gold, share_categories
from tests.training.gold_sets import coco_tree, gold_of

TREE = coco_tree(
    {"b.jpg": [("cat", [10, 20, 30.5, 40])], "a.jpg": [("dog", [0, 0, 5, 5]), ("cat", [1, 1, 2, 2])], "c.jpg": []},
    ["cat", "dog"],
    crowd=[("a.jpg", 1)],
)


def changed(**fields: Any) -> bytes:
    return json.dumps({**TREE, **fields}).encode()


def test_columns_are_what_the_file_says() -> None:
    gold = gold_of(TREE)
    assert gold.names == ("b.jpg", "a.jpg", "c.jpg"), "in the order of ids"
    assert gold.categories == ("cat", "dog")
    assert gold.images.tolist() == [0, 1, 1]
    assert gold.labels.tolist() == [0, 1, 0]
    assert gold.boxes.tolist() == [[10, 20, 40.5, 60], [0, 0, 5, 5], [1, 1, 3, 3]]
    assert gold.areas.tolist() == [30.5 * 40, 25, 4]
    assert gold.crowd.tolist() == [False, False, True]
    assert gold.sizes.tolist() == [[480, 640]] * 3
    assert gold.void_boxes == 0


def test_ids_may_be_in_any_order_and_areas_left_out() -> None:
    annotation = {"id": 0, "image_id": 9, "category_id": 7, "bbox": [1, 2, 3, 4]}
    images = [{"id": 9, "file_name": "./z/9.jpg"}, {"id": 2, "file_name": "2.jpg"}]
    gold = gold_of({"images": images, "categories": [{"id": 7, "name": "x"}], "annotations": [annotation]})
    assert gold.names == ("2.jpg", "z/9.jpg")
    assert (gold.images.tolist(), gold.labels.tolist(), gold.areas.tolist()) == ([1], [0], [12.0])
    assert gold.sizes.tolist() == [[0, 0], [0, 0]]


def test_boxes_without_area_are_counted_and_left_out() -> None:
    void = [{**TREE["annotations"][0], "bbox": [5, 5, width, height]} for width, height in ((0, 3), (3, 0), (-1, 4))]
    gold = parse_gold(changed(annotations=[*TREE["annotations"], *void]), "gold.json")
    assert (len(gold.boxes), gold.void_boxes) == (3, 3)


def test_fewer_images_and_categories() -> None:
    gold = gold_of(TREE)
    fewer = gold.restrict(np.array([False, True, True]), ["cat"])
    assert (fewer.names, fewer.categories) == (("a.jpg", "c.jpg"), ("cat",))
    assert (fewer.images.tolist(), fewer.labels.tolist()) == ([0], [0])
    assert fewer.boxes.tolist() == [[1, 1, 3, 3]]
    assert gold.restrict(np.ones(3, np.bool_), gold.categories).boxes.tolist() == gold.boxes.tolist()


BOX = TREE["annotations"][0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "Invalid JSON"),
        (b"[]", "the file: "),
        (changed(images=None), "images: "),
        (changed(images=[*TREE["images"], {"id": 1, "file_name": "d.jpg"}]), "images.id 1 occurs twice"),
        (changed(images=[*TREE["images"], {"id": 9, "file_name": "a.jpg"}]), "images.file_name 'a.jpg' occurs twice"),
        (changed(categories=[*TREE["categories"], {"id": 3, "name": "cat"}]), "categories.name 'cat' occurs twice"),
        (changed(annotations=[{**BOX, "image_id": 8}]), "annotations.0.image_id 8 is not in the file's images"),
        (changed(annotations=[{**BOX, "category_id": 8}]), "category_id 8 is not in the file's categories"),
        (changed(annotations=[BOX, {**BOX, "bbox": [1, 2, 3]}]), "annotations.1.bbox"),
        (changed(annotations=[{**BOX, "bbox": [1, 2, "x", 3]}]), "annotations.0.bbox.2"),
        (changed(annotations=[{**BOX, "bbox": [1, 2, float("nan"), 3]}]), "annotations.0.bbox.2"),
        (changed(annotations=[{"image_id": 1, "category_id": 1}]), "annotations.0.bbox"),
    ],
)
def test_what_is_not_coco_is_said(data: bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=r"^gold g\.json: ") as raised:
        parse_gold(data, "g.json")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.json: not found"):
        read_gold(str(tmp_path / "no.json"), {})
    with pytest.raises(ConfigError, match="nope"):
        read_gold("nope://x", {})


def test_categories_meet_by_name() -> None:
    shared = share_categories(gold_of(TREE), ["__background__", "dog", "emu"])
    assert (shared.names, shared.gold_only, shared.model_only) == (("dog",), ("cat",), ("emu",))
    with pytest.raises(ConfigError, match=r"none of its categories is the model's \(cat, dog\); did 'cat' mean 'Cat'"):
        share_categories(gold_of(TREE), ["__background__", "Cat"])
    with pytest.raises(ConfigError, match="the model knows emu"):
        share_categories(gold_of(TREE), ["__background__", "emu"])


def listed(*uris: str) -> list[pa.RecordBatch]:
    return [pa.record_batch({"image_uri": [uri], "size_bytes": [len(uri)]}) for uri in uris]


def test_images_are_found_by_the_whole_name() -> None:
    tree = coco_tree({"a.jpg": [], "deep/b.jpg": [], "s3://x/c.jpg": [], "gone.jpg": []}, ["cat"])
    uris = ["s3://x/p/a.jpg", "s3://x/p/deep/b.jpg", "s3://x/c.jpg", "s3://x/p/aa.jpg", "s3://x/p/b.jpg"]
    images = find_images(gold_of(tree), listed(*uris), "s3://x")
    assert images.uris == (*uris[:3], None)
    assert images.found.tolist() == [True, True, True, False]
    rows = pa.Table.from_batches(images.listing)
    assert rows["image_uri"].to_pylist() == uris[:3]
    assert rows["size_bytes"].to_pylist() == [len(uri) for uri in uris[:3]], "rows stay whole"


def test_an_image_is_one_image() -> None:
    gold = gold_of(TREE)
    assert find_images(gold, listed("f/a.jpg", "f/a.jpg"), "f").uris[1] == "f/a.jpg", "a manifest may say it twice"
    with pytest.raises(ConfigError, match=r"images f: a\.jpg of the gold set is both f/1/a\.jpg and f/2/a\.jpg"):
        find_images(gold, listed("f/1/a.jpg", "f/2/a.jpg"), "f")
    for uris in (["f/a.jpg", "f/thumbs/a.jpg"], ["f/thumbs/a.jpg", "f/a.jpg"]):
        assert find_images(gold, listed(*uris), "f/").uris[1] == "f/a.jpg", "right there comes first"
    with pytest.raises(ConfigError, match=r"none of the 3 images of gold\.json is there, such as b\.jpg"):
        find_images(gold, listed("f/z.jpg"), "f")


def test_real_labels(data_folder: Path) -> None:
    gold = read_gold(str(data_folder / "bccd" / "annotations.json"), {})
    assert (len(gold.names), len(gold.boxes), gold.void_boxes) == (364, 4886, 0)
    counts = np.bincount(gold.labels)
    assert dict(zip(gold.categories, counts.tolist(), strict=True)) == {"WBC": 372, "RBC": 4153, "Platelets": 361}
    dirty = read_gold(str(data_folder / "bccd" / "annotations.dirty.json"), {})
    assert (len(dirty.boxes), dirty.void_boxes) == (4886, 2)
