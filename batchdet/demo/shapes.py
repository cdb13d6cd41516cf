"""Outlines of the six drawn categories. Knows no pixels and no colours."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
"""[P, 2] corners (x, y) of a closed polygon, of unit size, y downwards."""


def outline(shape: str, rng: np.random.Generator) -> list[Points]:
    """A varied, turned outline: the outer polygon, then its hole if the shape has one.

    Args:
        shape: one of SHAPES.
        rng: decides proportions, skew and rotation.
    """
    rings = _OUTLINES[shape](rng)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    squeeze = rng.uniform(0.8, 1.0)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [(ring * (1.0, squeeze)) @ turn for ring in rings]


def _circle(radius: float, corners: int = 72) -> Points:
    angles = np.linspace(0.0, 2.0 * np.pi, corners, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _disc(_: np.random.Generator) -> list[Points]:
    return [_circle(1.0)]


def _box(rng: np.random.Generator) -> list[Points]:
    half = rng.uniform(0.65, 1.0)
    return [np.array([[-1.0, -half], [1.0, -half], [1.0, half], [-1.0, half]])]


def _triangle(rng: np.random.Generator) -> list[Points]:
    tip = rng.uniform(-0.35, 0.35)
    return [np.array([[tip, -1.0], [1.0, 0.75], [-1.0, 0.75]])]


def _star(rng: np.random.Generator) -> list[Points]:
    points = _circle(1.0, 10)
    points[1::2] *= rng.uniform(0.38, 0.5)
    return [points]


def _ring(rng: np.random.Generator) -> list[Points]:
    return [_circle(1.0), _circle(rng.uniform(0.5, 0.68))]


def _cross(rng: np.random.Generator) -> list[Points]:
    arm = rng.uniform(0.26, 0.4)
    quarter = np.array([[arm, -1.0], [arm, -arm], [1.0, -arm]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return [np.concatenate([quarter @ np.linalg.matrix_power(turn, step) for step in range(4)])]


_OUTLINES: dict[str, Callable[[np.random.Generator], list[Points]]] = {
    "disc": _disc,
    "box": _box,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}

SHAPES = tuple(_OUTLINES)
"""Names of what is drawn; a shape's label is its place here plus one."""
