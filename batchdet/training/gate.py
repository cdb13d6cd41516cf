"""Whether a model may take the place of the live one: its measures on held-out gold may not fall. Knows no registry."""

from dataclasses import dataclass
from statistics import fmean

from batchdet.training.evaluation import Score


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far a measure may fall, as fractions.

    Attributes:
        overall: of mAP.
        category: of one category's average precision, which is noisier.
        min_objects: gold objects a category needs to be judged by itself.
    """

    overall: float = 0.0
    category: float = 0.02
    min_objects: int = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says.

    Attributes:
        reasons: what fell too far, one line each; none for a model that passes.
    """

    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the candidate may go live."""
        return not self.reasons


def judge(candidate: Score, live: Score, tolerances: Tolerances) -> Verdict:
    """Compare two models measured on the same gold, over the categories the live one was measured on.

    A category that the candidate does not know counts as never found.
    """
    before = live.per_category
    now = {name: candidate.per_category.get(name, 0.0) for name in before}
    overall_now, overall_before = fmean(now.values()), fmean(before.values())
    reasons = []
    if overall_now < overall_before - tolerances.overall:
        reasons.append(_fell("mAP", overall_now, overall_before, tolerances.overall))
    for name, count in live.support.items():
        if count >= tolerances.min_objects and now[name] < before[name] - tolerances.category:
            reasons.append(_fell(f"{name} ({count} objects)", now[name], before[name], tolerances.category))
    return Verdict(tuple(reasons))


def _fell(what: str, now: float, before: float, tolerance: float) -> str:
    return f"{what} falls from {before:.3f} to {now:.3f}; {tolerance:g} is tolerated"
