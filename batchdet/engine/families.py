"""The architectures that can be loaded, each with its family. Knows only their names."""

from collections.abc import Mapping
from types import MappingProxyType

from batchdet.engine.family import Family
from batchdet.engine.ssd import SSDFamily

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "ssd300_vgg16": SSDFamily(),
        "ssdlite320_mobilenet_v3_large": SSDFamily(),
    }
)
"""torchvision builder name to family; a new architecture is one line here."""
