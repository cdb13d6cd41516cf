"""One place of a batch: a decoded picture, changed as its kind asks for. Knows no files and no network."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from batchdet.records import PixelArray
from batchdet.training.augment import View, change
from batchdet.training.order import Draw
from batchdet.training.seeds import derive_seed
from batchdet.training.targets import Target
from batchdet.training.view_config import AugmentationConfig

_VIEW, _SAMPLERS = 1, 2


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture of a batch, on the CPU.

    Attributes:
        uri: of the image, for messages.
        is_gold: its labels are human.
        view: pixels and target.
    """

    uri: str
    is_gold: bool
    view: View


def make_sample(uri: str, pixels: PixelArray, target: Target, draw: Draw, rules: AugmentationConfig) -> Sample:
    """A picture as a step sees it: weakly changed gold, strongly changed pseudo-labels.

    Args:
        uri: of the image.
        pixels: [H, W, 3] uint8 RGB, EXIF applied.
        target: in that frame.
        draw: the place it takes; its seed decides everything.
        rules: of both kinds.
    """
    picture = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
    kind = rules.weak if draw.is_gold else rules.strong
    seeded = replace(target, seed=derive_seed(draw.seed, _SAMPLERS))
    return Sample(uri, draw.is_gold, change(picture, seeded, kind, rules.min_side, derive_seed(draw.seed, _VIEW)))
