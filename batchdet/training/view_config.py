"""How pictures are changed before they are learned from. Knows names and ranges, nothing of pixels."""

from typing import Annotated

from pydantic import Field, model_validator

from batchdet.fields import Amount, Factor, Fraction, Section, Share


class ViewConfig(Section):
    """How a picture is changed before it is learned from. All chances are per image."""

    flip: Fraction = 0.5
    """Chance of being mirrored."""
    zoom: tuple[Factor, Factor] = (1.0, 1.0)
    """Range of scale jitter: 2 shows half the width and height, 0.5 puts the picture on a canvas twice as large."""
    iou_crop: Fraction = 0.0
    """Chance of SSD's crop: a part of the picture that overlaps an object by a drawn IoU."""
    iou_crop_overlaps: tuple[Fraction, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """The overlaps it draws from."""
    iou_crop_scale: tuple[Share, Share] = (0.3, 1.0)
    """Range of the crop's width and height, shares of the picture's."""
    distort: Fraction = 0.0
    """Chance of each photometric change."""
    brightness: Fraction = 0.125
    """Largest relative change of brightness."""
    contrast: Fraction = 0.5
    """Largest relative change of contrast."""
    saturation: Fraction = 0.5
    """Largest relative change of saturation."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.05
    """Largest turn of hue; 1 is a full turn."""
    blur: Amount = 0.0
    """Largest standard deviation of a Gaussian blur, as a share of the shorter side."""

    @model_validator(mode="after")
    def _order(self) -> "ViewConfig":
        for field in ("zoom", "iou_crop_scale"):
            low, high = getattr(self, field)
            if low > high:
                raise ValueError(f"{field}: expected a range (lowest, highest), got ({low}, {high})")
        if self.iou_crop and not self.iou_crop_overlaps:
            raise ValueError("iou_crop_overlaps: required with iou_crop; name at least one overlap")
        return self


STRONG = ViewConfig(zoom=(0.6, 1.5), iou_crop=0.3, distort=0.5, blur=0.005)
"""What pseudo-labelled pictures go through unless the job says otherwise."""


class AugmentationConfig(Section):
    """Changes by where the labels come from."""

    weak: ViewConfig = Field(default_factory=ViewConfig)
    """For gold."""
    strong: ViewConfig = STRONG
    """For pseudo-labelled images."""
    min_side: Factor = 1.0
    """Pixels; a box with a shorter side after cropping is left out."""
