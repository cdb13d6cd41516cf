"""Human labels in COCO's json become columns, and their file names images of a bucket. Knows no detections.

Shape shorthand: I images, G objects.
"""

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from batchdet.errors import ConfigError, StorageError, TransientStorageError
from batchdet.records import BoolArray, IntArray
from batchdet.storage.filesystem import open_store

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gold:
    """What people say is in a set of images. Images and categories are in the order of their COCO ids.

    Attributes:
        uri: where it was read from.
        digest: `sha256:<hex>` of the file.
        names: [I] file names, relative to wherever the images are.
        sizes: [I, 2] (height, width) as stated, pixels; 0 where not stated.
        categories: names of what can occur, without a background.
        images: [G] position of each object's image in `names`.
        labels: [G] position of each object's category in `categories`.
        boxes: [G, 4] xyxy pixels, float64: what COCO states, to the last bit that matters to a tie.
        areas: [G] pixels, as stated (COCO: of the mask), else of the box.
        crowd: [G] bool, many objects in one box: neither to be found nor to be missed.
        void_boxes: annotations left out because their box has no area.
    """

    uri: str
    digest: str
    names: tuple[str, ...]
    sizes: IntArray
    categories: tuple[str, ...]
    images: IntArray
    labels: IntArray
    boxes: Float64Array
    areas: Float64Array
    crowd: BoolArray
    void_boxes: int = 0

    def restrict(self, images: BoolArray, categories: Sequence[str]) -> "Gold":
        """The same labels for fewer images and categories.

        Args:
            images: [I] bool, which to keep.
            categories: which to keep, by name.
        """
        kept = np.isin(np.array(self.categories, dtype=object), np.array(categories, dtype=object))
        chosen = images[self.images] & kept[self.labels]
        new_image, new_label = np.cumsum(images) - 1, np.cumsum(kept) - 1
        return replace(
            self,
            names=tuple(np.array(self.names, dtype=object)[images]),
            sizes=self.sizes[images],
            categories=tuple(name for name, keep in zip(self.categories, kept, strict=True) if keep),
            images=new_image[self.images[chosen]],
            labels=new_label[self.labels[chosen]],
            boxes=self.boxes[chosen],
            areas=self.areas[chosen],
            crowd=self.crowd[chosen],
        )


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Image(_Entry):
    id: int
    file_name: Annotated[str, Field(min_length=1)]
    width: int = 0
    height: int = 0


class _Category(_Entry):
    id: int
    name: Annotated[str, Field(min_length=1)]


class _Annotation(_Entry):
    image_id: int
    category_id: int
    bbox: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=4, max_length=4)]
    area: Annotated[float, Field(allow_inf_nan=False)] | None = None
    iscrowd: bool = False


class _Document(_Entry):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


def read_gold(uri: str, options: Mapping[str, Any]) -> Gold:
    """Gold labels from a COCO json file (`bbox` xywh pixels, `iscrowd`, `area`).

    Args:
        uri: the file.
        options: fsspec storage options.

    Raises:
        ConfigError: there is no such file, or it is not COCO's; names the first field that is wrong.
        TransientStorageError: the store does not answer.
    """
    try:
        data = open_store(uri, options).read_bytes("")
    except TransientStorageError:
        raise
    except StorageError as error:
        raise ConfigError(f"gold {error}; name a COCO json file") from error
    return parse_gold(data, uri)


def parse_gold(data: bytes, uri: str) -> Gold:
    """As `read_gold`, from the bytes of the file; `uri` names it in errors."""
    try:
        document = _Document.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"gold {uri}: {place}: {first['msg']}; expected COCO's json") from error
    images = sorted(document.images, key=lambda image: image.id)
    categories = sorted(document.categories, key=lambda category: category.id)
    _require_distinct(uri, "images.id", [image.id for image in images])
    _require_distinct(uri, "images.file_name", [image.file_name for image in images])
    _require_distinct(uri, "categories.id", [category.id for category in categories])
    _require_distinct(uri, "categories.name", [category.name for category in categories])
    return Gold(
        uri=uri,
        digest="sha256:" + hashlib.sha256(data).hexdigest(),
        names=tuple(image.file_name.removeprefix("./") for image in images),
        sizes=np.array([(image.height, image.width) for image in images], np.int64).reshape(-1, 2),
        categories=tuple(category.name for category in categories),
        **_objects(document, uri, [image.id for image in images], [category.id for category in categories]),
    )


def _require_distinct(uri: str, field: str, values: Sequence[object]) -> None:
    if len(set(values)) < len(values):
        seen: set[object] = set()
        twice = next(value for value in values if value in seen or seen.add(value))  # type: ignore[func-returns-value]
        raise ConfigError(f"gold {uri}: {field} {twice!r} occurs twice")


def _objects(document: _Document, uri: str, image_ids: Sequence[int], category_ids: Sequence[int]) -> dict[str, Any]:
    """The columns of the objects; those without a box to find are counted only."""
    image_place = {number: place for place, number in enumerate(image_ids)}
    label_place = {number: place for place, number in enumerate(category_ids)}
    for place, annotation in enumerate(document.annotations):
        if annotation.image_id not in image_place or annotation.category_id not in label_place:
            field = "category_id" if annotation.image_id in image_place else "image_id"
            raise ConfigError(
                f"gold {uri}: annotations.{place}.{field} {getattr(annotation, field)} is not in the file's "
                f"{'categories' if field == 'category_id' else 'images'}"
            )
    real = [annotation for annotation in document.annotations if min(annotation.bbox[2:]) > 0]
    boxes = np.array([annotation.bbox for annotation in real], np.float64).reshape(-1, 4)
    areas = [
        annotation.bbox[2] * annotation.bbox[3] if annotation.area is None else annotation.area for annotation in real
    ]
    boxes[:, 2:] += boxes[:, :2]
    return {
        "images": np.array([image_place[annotation.image_id] for annotation in real], np.int64),
        "labels": np.array([label_place[annotation.category_id] for annotation in real], np.int64),
        "boxes": boxes,
        "areas": np.array(areas, np.float64),
        "crowd": np.array([annotation.iscrowd for annotation in real], np.bool_),
        "void_boxes": len(document.annotations) - len(real),
    }


@dataclass(frozen=True, slots=True)
class SharedCategories:
    """How the categories of a gold set and of a model meet, by name.

    Attributes:
        names: known to both, in the gold's order.
        gold_only: a model that does not know them cannot be measured on them.
        model_only: what the model says of them is neither right nor wrong here.
    """

    names: tuple[str, ...]
    gold_only: tuple[str, ...]
    model_only: tuple[str, ...]


def share_categories(gold: Gold, model_categories: Sequence[str]) -> SharedCategories:
    """Match categories by name.

    Args:
        gold: the labels.
        model_categories: names in label order, "__background__" first.

    Raises:
        ConfigError: they have none in common.
    """
    known = model_categories[1:]
    names = tuple(name for name in gold.categories if name in known)
    if not names:
        close = difflib.get_close_matches(gold.categories[0], known, n=1, cutoff=0.4) if gold.categories else []
        hint = f"did {gold.categories[0]!r} mean {close[0]!r}?" if close else f"the model knows {', '.join(known[:10])}"
        raise ConfigError(f"gold {gold.uri}: none of its categories is the model's ({_some(gold.categories)}); {hint}")
    return SharedCategories(
        names=names,
        gold_only=tuple(name for name in gold.categories if name not in known),
        model_only=tuple(name for name in known if name not in gold.categories),
    )


def require_objects(gold: Gold) -> None:
    """Refuse gold that nothing can be measured on.

    Raises:
        ConfigError: there is nothing to find.
    """
    if gold.crowd.all():
        raise ConfigError(
            f"gold {gold.uri}: holds no object in these images: average precision is undefined "
            "(crowds and boxes without area are no objects)"
        )


@dataclass(frozen=True, slots=True)
class GoldImages:
    """Where the images of a gold set are.

    Attributes:
        uris: [I] full URI of each; None where none was listed.
        listing: the listed rows of those found, columns as they came.
    """

    uris: tuple[str | None, ...]
    listing: tuple[pa.RecordBatch, ...]

    @property
    def found(self) -> BoolArray:
        """[I] bool, which were listed."""
        return np.array([uri is not None for uri in self.uris], np.bool_)


def find_images(gold: Gold, listing: Iterable[pa.RecordBatch], images_uri: str) -> GoldImages:
    """Join a listing with the file names of a gold set; an image is found where its URI ends with the whole name.

    Args:
        gold: the labels.
        listing: batches with a column image_uri, in any order.
        images_uri: the folder that was listed; an image right there by its name comes before others of that name.

    Raises:
        ConfigError: two listed images have the name of one, or none has any.
    """
    place = {name: number for number, name in enumerate(gold.names)}
    uris: list[str | None] = [None] * len(gold.names)
    kept = []
    for batch in listing:
        listed = [str(uri) for uri in batch.column("image_uri").to_pylist()]
        named = [(uri, _gold_name(uri, place)) for uri in listed]
        kept.append(batch.filter(pa.array([name is not None for _, name in named], pa.bool_())))
        for uri, name in named:
            if name is not None:
                uris[place[name]] = _chosen(name, uris[place[name]], uri, images_uri)
    if not any(uris):
        example = f", such as {gold.names[0]}" if gold.names else ""
        raise ConfigError(f"images {images_uri}: none of the {len(gold.names)} images of {gold.uri} is there{example}")
    return GoldImages(tuple(uris), tuple(batch for batch in kept if batch.num_rows))


def _chosen(name: str, before: str | None, uri: str, images_uri: str) -> str:
    """Which of two images is the one the gold set names."""
    right_there = f"{images_uri.rstrip('/')}/{name}"
    if before in (None, uri) or uri == right_there:
        return uri
    if before == right_there:
        return right_there
    raise ConfigError(f"images {images_uri}: {name} of the gold set is both {before} and {uri}")


def _gold_name(uri: str, place: Mapping[str, int]) -> str | None:
    """The longest end of the URI, cut at a slash, that is a name of the gold set."""
    end = uri
    while end not in place:
        _, slash, end = end.partition("/")
        if not slash:
            return None
    return end


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
