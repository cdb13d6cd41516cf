"""What became of a version of a model: in words, and as an exit. Knows no command."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchdet.cli.output import print_table
from batchdet.errors import GateError

if TYPE_CHECKING:
    from batchdet.measure import Measurement
    from batchdet.release import Release

Fact = tuple[str, object]


def show_release(
    release: "Release", measured: Sequence[tuple[str, "Measurement | None"]], facts: Sequence[Fact] = ()
) -> None:
    """Print whether a version is live, and why not.

    Args:
        release: of the version.
        measured: names and measures; those that were not taken are left out.
        facts: what else there is to say.
    """
    promoted: list[Fact] = [("promoted", "yes" if release.promoted else "no"), ("instead of", release.instead_of)]
    means = [(name, f"{measure.evaluation.score.map:.3f}") for name, measure in measured if measure is not None]
    reasons = [("reason", reason) for reason in release.reasons]
    print_table(("model", release.reference), [*promoted, *facts, *means, *reasons])


def require_promoted(release: "Release") -> None:
    """Refuse a version that is not live.

    Raises:
        GateError: it is not; says why.
    """
    if not release.promoted:
        raise GateError(f"{release.reference} is not promoted: {'; '.join(release.reasons)}")
