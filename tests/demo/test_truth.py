"""Average precision against values worked out by hand."""

from collections.abc import Mapping

import numpy as np
import pytest

from batchdet.demo.truth import ImageFindings, ImageTruth, score_against_truth

CATEGORIES = ("__background__", "disc", "star", "box")
BOX = [10.0, 10.0, 110.0, 110.0]
FAR = [200.0, 200.0, 260.0, 300.0]


def truth(*objects: tuple[list[float], int]) -> ImageTruth:
    return ImageTruth(
        np.array([box for box, _ in objects], np.float32).reshape(-1, 4),
        np.array([label for _, label in objects], np.int64),
    )


def found(*objects: tuple[list[float], float, int]) -> ImageFindings:
    return ImageFindings(
        np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in objects], np.float32),
        np.array([label for _, _, label in objects], np.int64),
    )


# 100 x 100 moved by 20: IoU 8000 / 12000, so right at 0.50, 0.55, 0.60 and 0.65 of ten thresholds.
MOVED = [30.0, 10.0, 130.0, 110.0]
# Moved by 30: IoU 7000 / 13000, right at 0.50 alone.
FARTHER = [40.0, 10.0, 140.0, 110.0]


@pytest.mark.parametrize(
    ("findings", "expected", "expected_50"),
    [
        pytest.param({"a": found((BOX, 0.9, 1))}, 1.0, 1.0, id="the box itself"),
        pytest.param({"a": found((MOVED, 0.9, 1))}, 0.4, 1.0, id="IoU 2/3 counts up to 0.65"),
        pytest.param({"a": found((FARTHER, 0.9, 1))}, 0.1, 1.0, id="IoU 0.54 counts at 0.50 only"),
        pytest.param({"a": found((BOX, 0.9, 2))}, 0.0, 0.0, id="the wrong category"),
        pytest.param({"a": found((FAR, 0.9, 1))}, 0.0, 0.0, id="the wrong place"),
        pytest.param({}, 0.0, 0.0, id="nothing found at all"),
        pytest.param({"a": found()}, 0.0, 0.0, id="an image without findings"),
        pytest.param({"a": found((BOX, 0.9, 1), (FAR, 0.8, 1))}, 1.0, 1.0, id="a false one ranked below is free"),
        pytest.param({"a": found((BOX, 0.8, 1), (FAR, 0.9, 1))}, 0.5, 0.5, id="a false one ranked above halves"),
        pytest.param({"a": found((BOX, 0.8, 1)), "b": found((FAR, 0.9, 1))}, 0.5, 0.5, id="or on another image"),
        pytest.param({"a": found((BOX, 0.9, 1), (BOX, 0.95, 1))}, 1.0, 1.0, id="a second box for one object is false"),
    ],
)
def test_one_object(findings: Mapping[str, ImageFindings], expected: float, expected_50: float) -> None:
    score = score_against_truth({"a": truth((BOX, 1)), "b": truth()}, findings, CATEGORIES)
    assert score.map == pytest.approx(expected, abs=1e-6)
    assert score.map_50 == pytest.approx(expected_50, abs=1e-6)
    assert (score.num_images, score.num_objects) == (2, 1)


def test_the_mean_is_over_categories_that_are_there() -> None:
    score = score_against_truth(
        {"a": truth((BOX, 1), (FAR, 2))}, {"a": found((BOX, 0.9, 1), (FAR, 0.3, 3))}, CATEGORIES
    )
    assert score.per_category == pytest.approx({"disc": 1.0, "star": 0.0})
    assert score.map_50 == pytest.approx(0.5)


def test_half_of_the_objects_is_half_the_recall() -> None:
    score = score_against_truth({"a": truth((BOX, 1), (FAR, 1))}, {"a": found((BOX, 0.9, 1))}, CATEGORIES)
    # COCO reads precision at 101 recalls 0.00 … 1.00, of which 0.00 … 0.50 are reached.
    assert score.map == pytest.approx(51 / 101)


def test_findings_of_unknown_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no truth for 1 images with findings, e\.g\. z"):
        score_against_truth({"a": truth((BOX, 1))}, {"z": found((BOX, 0.9, 1))}, CATEGORIES)


def test_truth_without_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no object"):
        score_against_truth({"a": truth()}, {}, CATEGORIES)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    score_against_truth({"a": truth((BOX, 1))}, {"a": found((BOX, 0.9, 1))}, CATEGORIES)
    assert capfd.readouterr() == ("", "")
