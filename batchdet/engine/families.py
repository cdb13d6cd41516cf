"""The architectures that can be loaded, each with its family. Knows only their names."""

from collections.abc import Mapping
from types import MappingProxyType

from batchdet.engine.family import Family
from batchdet.engine.rcnn import RCNNFamily
from batchdet.engine.ssd import SSDFamily

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "ssd300_vgg16": SSDFamily(),
        "ssdlite320_mobilenet_v3_large": SSDFamily(),
        "fasterrcnn_resnet50_fpn": RCNNFamily(),
        "fasterrcnn_resnet50_fpn_v2": RCNNFamily(),
        "fasterrcnn_mobilenet_v3_large_fpn": RCNNFamily(),
        "fasterrcnn_mobilenet_v3_large_320_fpn": RCNNFamily(),
    }
)
"""torchvision builder name to family; a new architecture is one line here."""
