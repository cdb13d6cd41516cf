"""The policy against a plain-Python oracle and tables."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet.config import PolicyConfig
from batchdet.engine.detections import Detections
from batchdet.engine.postfilter import PostFilter, Verdict
from batchdet.errors import ConfigError

CATEGORIES = ("__background__", "cat", "dog", "fox")
Row = tuple[int, float, int, tuple[float, float, float, float]]
"""image, score, label, box"""


def detections_of(rows: list[Row], images: int, capped: list[bool] | None = None) -> Detections:
    ordered = sorted(rows, key=lambda row: (row[0], -row[1]))
    return Detections(
        boxes=torch.tensor([row[3] for row in ordered], dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor([row[1] for row in ordered], dtype=torch.float32),
        labels=torch.tensor([row[2] for row in ordered], dtype=torch.int64),
        image_index=torch.tensor([row[0] for row in ordered], dtype=torch.int64),
        capped=torch.tensor(capped if capped is not None else [False] * images, dtype=torch.bool),
        finite=torch.ones(images, dtype=torch.bool),
    )


def rows_of(verdict: Verdict) -> list[tuple[Row, bool]]:
    found = verdict.detections
    columns = zip(
        found.image_index.tolist(), found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True
    )
    rows = [(image, score, label, (box[0], box[1], box[2], box[3])) for image, score, label, box in columns]
    return list(zip(rows, verdict.accepted.tolist(), strict=True))


def overlap(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    """IoU in float32, step by step as torchvision's kernel computes it."""
    a, b = np.array(one, np.float32), np.array(two, np.float32)
    zero = np.float32(0)
    wide = max(min(a[2], b[2]) - max(a[0], b[0]), zero)
    high = max(min(a[3], b[3]) - max(a[1], b[1]), zero)
    inter = wide * high
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return float(inter / union) if union > 0 else 0.0


def oracle(rows: list[Row], images: int, policy: PolicyConfig) -> tuple[list[tuple[Row, bool]], list[bool]]:
    """The policy, one detection at a time."""
    result: list[tuple[Row, bool]] = []
    over = []
    for image in range(images):
        kept: list[Row] = []
        many = False
        for row in sorted((row for row in rows if row[0] == image), key=lambda row: (-row[1], row[2], row[3])):
            _, score, label, box = row
            threshold = policy.score_thresholds.get(CATEGORIES[label], policy.score_threshold)
            passed = score >= float(np.float32(threshold))
            passed = passed and min(box[2] - box[0], box[3] - box[1]) >= policy.min_box_side
            if passed and policy.iou_threshold is not None:
                rivals = [other for other in kept if policy.nms == "agnostic" or other[2] == label]
                passed = all(overlap(other[3], box) <= policy.iou_threshold for other in rivals)
            if passed:
                kept.append(row)
                if policy.max_detections is not None and len(kept) > policy.max_detections:
                    passed, many = False, True
            result.append((row, passed))
        over.append(many)
    return result, over


sides = st.integers(0, 6).map(float)
boxes = st.tuples(sides, sides, sides, sides).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
scores = st.sampled_from([float(np.float32(tenth / 10)) for tenth in range(1, 10)])
row_lists = st.integers(0, 4).flatmap(
    lambda images: st.tuples(
        st.just(images),
        st.lists(st.tuples(st.integers(0, images - 1), scores, st.integers(1, 3), boxes), max_size=40)
        if images
        else st.just([]),
    )
)
policies = st.builds(
    PolicyConfig,
    score_threshold=st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]),
    score_thresholds=st.dictionaries(st.sampled_from(CATEGORIES[1:]), st.sampled_from([0.2, 0.6, 0.9])),
    iou_threshold=st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]),
    nms=st.sampled_from(["per_class", "agnostic"]),
    max_detections=st.sampled_from([None, 1, 2, 5]),
    min_box_side=st.sampled_from([0.0, 1.0, 2.5]),
)


@settings(max_examples=400, deadline=None)
@given(row_lists, policies)
def test_the_policy_equals_a_plain_loop(images_rows: tuple[int, list[Row]], policy: PolicyConfig) -> None:
    images, rows = images_rows
    verdict = PostFilter(policy, CATEGORIES)(detections_of(rows, images))
    expected, over = oracle(rows, images, policy)
    assert rows_of(verdict) == expected
    assert verdict.capped.tolist() == over


@settings(max_examples=50, deadline=None)
@given(row_lists, policies)
def test_no_candidate_is_dropped_and_none_is_changed(images_rows: tuple[int, list[Row]], policy: PolicyConfig) -> None:
    images, rows = images_rows
    verdict = PostFilter(policy, CATEGORIES)(detections_of(rows, images))
    assert sorted(row for row, _ in rows_of(verdict)) == sorted(rows)


@settings(max_examples=100, deadline=None)
@given(row_lists, policies)
def test_a_cpu_and_a_device_judge_alike(images_rows: tuple[int, list[Row]], policy: PolicyConfig) -> None:
    images, rows = images_rows
    postfilter = PostFilter(policy, CATEGORIES)
    ordered = postfilter(detections_of(rows, images)).detections
    host, device = postfilter.on_host(ordered), postfilter.on_device(ordered)
    assert torch.equal(host.accepted, device.accepted)
    assert torch.equal(host.capped, device.capped)


@settings(max_examples=50, deadline=None)
@given(row_lists, policies)
def test_a_neighbour_changes_nothing(images_rows: tuple[int, list[Row]], policy: PolicyConfig) -> None:
    images, rows = images_rows
    postfilter = PostFilter(policy, CATEGORIES)
    whole = rows_of(postfilter(detections_of(rows, images)))
    alone = []
    for image in range(images):
        own = [(0, *row[1:]) for row in rows if row[0] == image]
        alone += [((image, *row[1:]), passed) for row, passed in rows_of(postfilter(detections_of(own, 1)))]
    assert whole == alone


BIG, SHIFTED, SMALL = (0.0, 0.0, 10.0, 10.0), (1.0, 0.0, 11.0, 10.0), (50.0, 50.0, 52.0, 60.0)


@pytest.mark.parametrize(
    ("policy", "rows", "accepted"),
    [
        pytest.param({}, [(0.5, 1, BIG)], [True], id="a score on the threshold passes"),
        pytest.param({"score_threshold": 0.3}, [(0.3, 1, BIG)], [True], id="0.3 is the float32 0.3"),
        pytest.param({}, [(0.49, 1, BIG)], [False], id="below fails"),
        pytest.param(
            {"score_thresholds": {"dog": 0.9}}, [(0.8, 1, BIG), (0.8, 2, BIG)], [True, False], id="per category up"
        ),
        pytest.param(
            {"score_thresholds": {"dog": 0.1}}, [(0.2, 1, BIG), (0.2, 2, BIG)], [False, True], id="per category down"
        ),
        pytest.param({}, [(0.9, 1, BIG), (0.8, 1, SHIFTED)], [True, True], id="no second NMS unless asked"),
        pytest.param({"iou_threshold": 0.5}, [(0.9, 1, BIG), (0.8, 1, SHIFTED)], [True, False], id="second NMS"),
        pytest.param({"iou_threshold": 0.5}, [(0.9, 1, BIG), (0.8, 2, SHIFTED)], [True, True], id="per class"),
        pytest.param(
            {"iou_threshold": 0.5, "nms": "agnostic"}, [(0.9, 1, BIG), (0.8, 2, SHIFTED)], [True, False], id="agnostic"
        ),
        pytest.param(
            {"iou_threshold": 0.5, "nms": "agnostic", "score_thresholds": {"cat": 0.95}},
            [(0.9, 1, BIG), (0.8, 2, SHIFTED)],
            [False, True],
            id="what is not accepted suppresses nothing",
        ),
        pytest.param({"min_box_side": 2.0}, [(0.9, 1, SMALL)], [True], id="a side on the minimum passes"),
        pytest.param({"min_box_side": 2.1}, [(0.9, 1, SMALL)], [False], id="the shorter side counts"),
        pytest.param(
            {"max_detections": 1, "iou_threshold": 0.5},
            [(0.9, 1, BIG), (0.8, 1, SHIFTED), (0.7, 1, SMALL)],
            [True, False, False],
            id="the cap comes last",
        ),
    ],
)
def test_rules(
    policy: dict[str, object], rows: list[tuple[float, int, tuple[float, ...]]], accepted: list[bool]
) -> None:
    verdict = PostFilter(PolicyConfig.model_validate(policy), CATEGORIES)(detections_of([(0, *row) for row in rows], 1))
    assert verdict.accepted.tolist() == accepted


def test_caps_of_model_and_policy_are_told_together() -> None:
    rows: list[Row] = [(0, 0.9, 1, BIG), (0, 0.8, 2, SMALL), (1, 0.9, 1, BIG), (2, 0.9, 1, BIG)]
    policy = PolicyConfig(max_detections=1)
    verdict = PostFilter(policy, CATEGORIES)(detections_of(rows, 4, capped=[False, True, False, True]))
    assert verdict.capped.tolist() == [True, True, False, True]


def test_equal_scores_are_ordered_by_label_then_box() -> None:
    rows: list[Row] = [(0, 0.5, 2, BIG), (0, 0.5, 1, SMALL), (0, 0.5, 1, SHIFTED), (0, 0.5, 1, BIG), (0, 0.6, 3, BIG)]
    verdict = PostFilter(PolicyConfig(), CATEGORIES)(detections_of(rows, 1))
    assert [row for row, _ in rows_of(verdict)] == [
        (0, float(np.float32(0.6)), 3, BIG),
        (0, 0.5, 1, BIG),
        (0, 0.5, 1, SHIFTED),
        (0, 0.5, 1, SMALL),
        (0, 0.5, 2, BIG),
    ]


@pytest.mark.parametrize(
    ("policy", "floor", "message"),
    [
        ({"score_thresholds": {"dgo": 0.9}}, None, r"policy\.score_thresholds\.dgo: .*did you mean dog\?"),
        ({"score_thresholds": {"zzz": 0.9}}, None, r"policy\.score_thresholds\.zzz: .*the model knows cat, dog, fox"),
        ({"score_thresholds": {"__background__": 0.9}}, None, r"policy\.score_thresholds\.__background__"),
        ({"score_threshold": 0.04}, 0.05, r"policy\.score_threshold is 0\.04, under model\.score_floor 0\.05"),
        ({"score_thresholds": {"cat": 0.01}}, 0.05, r"policy\.score_thresholds\.cat is 0\.01, under"),
    ],
)
def test_a_void_policy_is_refused(policy: dict[str, object], floor: float | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PostFilter(PolicyConfig.model_validate(policy), CATEGORIES, floor)
