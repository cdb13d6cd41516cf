"""A network rearranged to run faster on a CPU. Knows no architecture, and not whether the result is close enough."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(network: nn.Module) -> nn.Module:
    """A copy with every normalisation that follows a convolution folded into it, channels last in memory.

    The same function but for float32 rounding, which grows where a channel's variance is tiny.
    """
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            _fold_pairs(module)
    return network.to(memory_format=torch.channels_last)


def _fold_pairs(sequence: nn.Sequential) -> None:
    children = list(sequence.named_children())
    for (name, layer), (next_name, following) in pairwise(children):
        if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            setattr(sequence, name, fuse_conv_bn_eval(layer, following))
            setattr(sequence, next_name, nn.Identity())
