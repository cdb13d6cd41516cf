import re
from pathlib import Path
from typing import Any

import pytest

from batchdet.errors import ConfigError
from batchdet.training.config import OptimiserConfig, TrainConfig, load_train

LEAST: dict[str, Any] = {
    "source.outputs": ["s3://labels/photos"],
    "start.reference": "torchvision:ssd300_vgg16",
    "length.steps": 10,
}


def job(**changes: object) -> TrainConfig:
    return load_train(None, LEAST | {name.replace("__", "."): value for name, value in changes.items()})


def test_a_few_fields_are_a_job() -> None:
    assert job().length.batch_images == 16
    assert job().canonical != job(length__seed=1).canonical


def test_a_file_is_read_and_overridden(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("source: {outputs: [s3://a/b]}\nstart: {reference: m}\nlength: {epochs: 2}\n")
    assert load_train(file, {"length.seed": 3}).length.model_dump() == {
        "steps": None,
        "epochs": 2,
        "batch_images": 16,
        "seed": 3,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length__epochs": 3}, "length.steps or length.epochs"),
        ({"start__weights": "scratch"}, "start.architecture and start.categories"),
        ({"start__reference": None}, "start.reference: required"),
        ({"start__categories": ["cat"]}, '"__background__"'),
        ({"start__categories": ["__background__", "cat", "cat"]}, "occurs twice"),
        ({"pseudo_labels__bands__accept": 0.2}, "ignore 0.3 is above accept 0.2"),
        ({"teacher__pseudo_weight": 4.0}, "teacher.pseudo_weight"),
        ({"teacher__mode": "mean_teacher", "network__average": 0.0}, "network.average"),
        ({"source__outputs": ["s3://key:secret@host/b"]}, "source.outputs.0 holds a password"),
        ({"source": None}, "source or gold"),
        ({"losses__rcnn__rpn_background_iou": 0.8}, "rpn_background_iou 0.8 is above"),
        ({"augmentation__strong__zoom": (2.0, 1.0)}, "zoom"),
        ({"augmentation__strong__zoom": ["wide"]}, "augmentation.strong.zoom.0: "),
        ({"length__batch": 3}, "length.batch: unknown field"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        if changes.get("source", 1) is None:
            load_train(None, {name: value for name, value in LEAST.items() if not name.startswith("source")})
        job(**changes)


def test_random_weights_need_statistics_of_their_own() -> None:
    start = {"start__weights": "scratch", "start__architecture": "a", "start__categories": ["__background__", "cat"]}
    with pytest.raises(ConfigError, match=r"network\.norms"):
        job(**start)
    assert job(**start, network__norms="local").network.norms == "local"


@pytest.mark.parametrize(("scaling", "expected"), [("linear", 0.02), ("sqrt", 0.01), ("none", 0.005)])
def test_the_rate_grows_with_the_batch_as_written(scaling: Any, expected: float) -> None:
    assert OptimiserConfig(scaling=scaling).peak_rate(64) == pytest.approx(expected)
