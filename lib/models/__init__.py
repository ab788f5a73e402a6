"""The networks by name, all (N, channels, H, W) in [0, 1] -> (N, classes) logits.

A stand-in is a smaller member of the same class and is called one wherever it is shown.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import nn

from lib.errors import choose
from lib.models.mobilenet_v2 import MobileNetV2
from lib.models.resnet import PreActResNet, ResNet
from lib.models.vgg import VGG
from lib.models.wide_resnet import WideResNet, WideResNetWithSubBlock

MODELS: dict[str, Callable[..., nn.Module]] = {
    "ResNet18": partial(ResNet, (2, 2, 2, 2), 64),
    "ResNet18-guide": partial(ResNet, (2, 2, 2, 2), 64, (1, 1, 2, 2)),
    "ResNet34": partial(ResNet, (3, 4, 6, 3), 64),
    "PreActResNet18": partial(PreActResNet, (2, 2, 2, 2), 64),
    "MobileNetV2": MobileNetV2,
    "VGG16": VGG,
    "WideResNet-34-10": partial(WideResNet, 34, 10),
    "WideResNet-34-10-sub-block": partial(WideResNetWithSubBlock, 34, 10),
    "WideResNet-34-20": partial(WideResNet, 34, 20),
    "WideResNet-70-16": partial(WideResNet, 70, 16),
    "WideResNet-70-16-silu": partial(WideResNet, 70, 16, F.silu),
    "ResNet8-w8": partial(ResNet, (1, 1, 1), 8),
    "ResNet8-w8-guide": partial(ResNet, (1, 1, 1), 8, (1, 1, 2)),
    "ResNet10-w8": partial(ResNet, (1, 1, 1, 1), 8),
    "PreActResNet8-w8": partial(PreActResNet, (1, 1, 1), 8),
    "VGG-small": partial(VGG, ((8, 8), (16, 16), (32,))),
    "MobileNetV2-small": partial(MobileNetV2, ((1, 8, 1, 2), (6, 16, 1, 1), (6, 32, 1, 2)), stem=8, head=64),
    "WideResNet-28-4": partial(WideResNet, 28, 4),
    "WideResNet-28-6": partial(WideResNet, 28, 6),
    "WideResNet-28-6-silu": partial(WideResNet, 28, 6, activation=F.silu),
    "WideResNet-10-1": partial(WideResNet, 10, 1),
    "WideResNet-10-1-silu": partial(WideResNet, 10, 1, F.silu),
    "WideResNet-16-1": partial(WideResNet, 16, 1),
}


def build(name: str, *, classes: int, channels: int = 3) -> nn.Module:
    """The network called `name`, its weights drawn from torch's global generator; an unknown name is a UserError."""
    return choose("model", name, MODELS)(classes=classes, channels=channels)
