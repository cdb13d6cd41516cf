"""Pseudo-labels against gold: boxes per image, all together and by category. Knows no boxes and no files.

A student learns the excess or the want of its labels: pseudo-labels drift before a training's losses show it.
"""

from dataclasses import dataclass

from batchdet.errors import DriftError
from batchdet.training.config import GuardConfig
from batchdet.training.pseudo_labels import BoxCounts


@dataclass(frozen=True, slots=True)
class Drift:
    """How pseudo-labels compare with gold in one category.

    Attributes:
        category: None for all together.
        pseudo, gold: boxes per image.
        is_outside: of the band.
    """

    category: str | None
    pseudo: float
    gold: float
    is_outside: bool

    @property
    def ratio(self) -> float:
        """Of pseudo-boxes per image to gold boxes per image."""
        return self.pseudo / self.gold

    def __str__(self) -> str:
        return (
            f"{self.category or 'all categories'}: {self.pseudo:.3g} pseudo-boxes per image, gold has {self.gold:.3g}"
        )


def compare_with_gold(pseudo: BoxCounts, gold: BoxCounts, rules: GuardConfig) -> list[Drift]:
    """Each judged category and, first, all together.

    Args:
        pseudo: of all labelled images, those without a box included.
        gold: of the gold images.
        rules: the band, and how many gold boxes make a category worth judging.
    """
    categories = [name for name, boxes in sorted(gold.boxes.items()) if boxes >= rules.min_boxes]
    # Categories that gold does not know are no drift: nobody was asked about them.
    known = {name: pseudo.boxes.get(name, 0) for name in gold.boxes}
    pairs: list[tuple[str | None, int, int]] = [(name, known[name], gold.boxes[name]) for name in categories]
    whole = sum(gold.boxes.values())
    if whole >= rules.min_boxes:
        pairs.insert(0, (None, sum(known.values()), whole))
    drifts = []
    for name, pseudo_boxes, gold_boxes in pairs:
        found, wanted = pseudo_boxes / pseudo.num_images, gold_boxes / gold.num_images
        drifts.append(Drift(name, found, wanted, not rules.lowest <= found / wanted <= rules.highest))
    return drifts


def guard(pseudo: BoxCounts, gold: BoxCounts, rules: GuardConfig) -> list[Drift]:
    """The drifts outside the band, to be told; none where the guard is off.

    Raises:
        DriftError: there are some, and the job says to refuse them.
    """
    if rules.action == "off":
        return []
    outside = [drift for drift in compare_with_gold(pseudo, gold, rules) if drift.is_outside]
    if outside and rules.action == "refuse":
        more = f" (and {len(outside) - 1} more)" if len(outside) > 1 else ""
        raise DriftError(
            f"pseudo-labels are unlike gold: {outside[0]}{more}; the ratio must lie between guard.lowest "
            f"{rules.lowest} and guard.highest {rules.highest}: change pseudo_labels.bands, or set guard.action=warn"
        )
    return outside
