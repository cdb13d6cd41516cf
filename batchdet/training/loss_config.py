"""What the losses of a training go by. Knows names and ranges, nothing of tensors."""

from pydantic import Field, model_validator

from batchdet.fields import Amount, Count, Factor, Fraction, Positive, Section, Share, refuse_above


class SSDRules(Section):
    """The training rules of SSD (Liu et al. 2016, section 2.2)."""

    match_iou: Share = 0.5
    """IoU from which a default box is positive; the best one of every object is positive anyway."""
    negatives_per_positive: Amount = 3.0
    """Hard negatives mined per positive default box of an image."""
    min_negatives: Count = 0
    """Hard negatives mined at least, also in an image without objects."""
    smooth_l1_beta: Factor = 1.0
    """Offset at which the box loss turns from quadratic to linear."""


class RCNNRules(Section):
    """The training rules of Faster R-CNN (Ren et al. 2015, section 3.1; Girshick 2015, section 2.3)."""

    rpn_anchors: Positive = 256
    """Anchors sampled per image."""
    rpn_positive_share: Share = 0.5
    """Most of them that may be positive."""
    rpn_foreground_iou: Share = 0.7
    """IoU from which an anchor is positive; the best ones of every object are positive anyway."""
    rpn_background_iou: Fraction = 0.3
    """IoU under which an anchor is negative; between the two it is not used."""
    roi_samples: Positive = 512
    """Proposals sampled per image."""
    roi_positive_share: Share = 0.25
    """Most of them that may be positive."""
    roi_foreground_iou: Share = 0.5
    """IoU from which a proposal is positive."""
    roi_background_iou: Fraction = 0.5
    """IoU under which a proposal is background; between the two it is not used."""
    smooth_l1_beta: Factor = 1 / 9
    """Offset at which the box losses turn from quadratic to linear."""

    @model_validator(mode="after")
    def _order(self) -> "RCNNRules":
        for stage in ("rpn", "roi"):
            low, high = f"{stage}_background_iou", f"{stage}_foreground_iou"
            refuse_above((f"losses.rcnn.{low}", getattr(self, low)), (high, getattr(self, high)))
        return self


class LossConfig(Section):
    """What counts how much."""

    ignore_overlap: Share = 0.5
    """A default box, anchor or proposal with this share of its area on an ignored box is in no loss."""
    ssd: SSDRules = Field(default_factory=SSDRules)
    """For the SSD family."""
    rcnn: RCNNRules = Field(default_factory=RCNNRules)
    """For the Faster R-CNN family."""
    weights: dict[str, Amount] = Field(default_factory=dict)
    """Factors of single losses by torchvision's name of them; 1 where none is given."""
