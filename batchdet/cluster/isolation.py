"""Which image of a shard kills labellers. Pure bookkeeping: knows no actor.

A suspect shard is first labelled alone. If that ends its labeller too, its images are probed in halves, each in a
labeller that has nothing else to do, until single images remain; these are failed and the rest is labelled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from batchdet.records import FailedImage, ImageRef


@dataclass(frozen=True, slots=True)
class _Span:
    """Neighbouring images.

    Attributes:
        deadly: they hold an image that kills, as was seen or as follows from their sibling's survival.
        seen: they themselves ended a labeller that held nothing else.
        is_left: the span below on the stack is the right sibling.
    """

    refs: Sequence[ImageRef]
    deadly: bool = False
    seen: bool = False
    is_left: bool = False


@dataclass
class Suspect:
    """One shard under suspicion, and what to try next.

    Attributes:
        shard_id: the shard.
        poison: images found to kill labellers, by URI.
        rounds: times labelling the shard whole ended a labeller that had nothing else to do.
    """

    shard_id: int
    poison: dict[str, FailedImage] = field(default_factory=dict)
    rounds: int = 0
    _stack: list[_Span] = field(default_factory=list)

    def next_probe(self) -> Sequence[ImageRef] | None:
        """Images to probe next; None when the shard is to be labelled without its poison."""
        while self._stack and self._stack[-1].deadly:
            if len(self._stack[-1].refs) == 1 and not self._stack[-1].seen:
                break  # no image is failed for what followed from others: it must end a labeller itself
            refs = self._stack.pop().refs
            if len(refs) == 1:
                reason = "labelling it alone ended the process"
                self.poison[refs[0].uri] = FailedImage(refs[0], "detect", "worker_died", reason)
            elif refs:
                middle = len(refs) // 2
                self._stack += [_Span(refs[middle:]), _Span(refs[:middle], is_left=True)]
        return self._stack[-1].refs if self._stack else None

    def probed(self, survived: bool) -> None:
        """The images of `next_probe` were tried."""
        span = self._stack.pop()
        if not survived:
            self._stack.append(_Span(span.refs, deadly=True, seen=True))
        elif span.is_left:
            # The parent was deadly and this half is not, so the other half is: no need to lose a labeller to know.
            self._stack[-1] = replace(self._stack[-1], deadly=True)

    def died_whole(self, refs: Sequence[ImageRef]) -> None:
        """Labelling the shard without its poison ended a labeller.

        Args:
            refs: the shard's images in plan order.
        """
        self.rounds += 1
        self._stack = [_Span([ref for ref in refs if ref.uri not in self.poison], deadly=True, seen=True)]
