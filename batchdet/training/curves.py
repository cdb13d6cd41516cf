"""Draws precision against recall, and losses against steps. Knows no detections, only the curves.

Shape shorthand: R = 101 levels of recall.
"""

import importlib.util
import io
from collections.abc import Mapping, Sequence

import numpy as np

from batchdet.errors import ConfigError
from batchdet.training.evaluation import Float64Array

MOST_CURVES = 20
"""Categories drawn, those with the most gold objects; more lines than that cannot be told apart."""


def require_matplotlib() -> None:
    """Say so before any work is done for a plot that cannot be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--to draws with matplotlib: pip install 'batchdet[evaluate]'")


def draw_precision_recall(precision: Mapping[str, Float64Array], support: Mapping[str, int]) -> bytes:
    """A PNG with one curve per category at IoU 0.50.

    Args:
        precision: [R] at recall 0, 0.01 … 1, by category.
        support: gold objects by category.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot(xlabel="recall", ylabel="precision", title="IoU 0.50", xlim=(0, 1), ylim=(0, 1.02))
    chosen = sorted(precision, key=lambda name: -support[name])[:MOST_CURVES]
    for name in chosen:
        curve = precision[name]
        axes.plot(np.linspace(0, 1, len(curve)), curve, label=f"{name}: {curve.mean():.3f} ({support[name]} objects)")
    axes.grid(alpha=0.3)
    hidden = len(precision) - len(chosen)
    axes.legend(
        title="average precision" + (f"; {hidden} rarer categories not drawn" if hidden else ""), loc="lower left"
    )
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()


def draw_training(
    steps: Sequence[int],
    losses: Mapping[str, Sequence[float]],
    scores: Mapping[str, float],
    looks: Mapping[int, float],
) -> bytes:
    """A PNG with the losses of a training, and the mAP it led to beside its rivals'.

    Args:
        steps: numbers of the steps.
        losses: by name, one value a step.
        scores: mAP as a fraction, by the name of who was measured.
        looks: the student's mAP by step, where it was examined while it learned.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    left.set(xlabel="step", ylabel="loss", title="losses of each step")
    for name, values in losses.items():
        left.plot(steps, values, label=name, linewidth=1)
    left.grid(alpha=0.3)
    left.legend(loc="upper right")
    if looks:
        beside = left.twinx()
        beside.set(ylabel="mAP on held-out gold", ylim=(0, 1))
        beside.plot(list(looks), list(looks.values()), "k.--", label="mAP")
        beside.legend(loc="upper left")
    right.set(ylabel="mAP on held-out gold", title="measured", ylim=(0, 1))
    right.bar_label(right.bar(list(scores), list(scores.values())), fmt="%.3f")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()
