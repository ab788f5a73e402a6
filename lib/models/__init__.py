"""The networks by name, all (N, channels, H, W) in [0, 1] -> (N, classes) logits.

A name is a pattern's: ResNet18-w16 is ResNet-18 with 16 channels in its first stage (without -w: 64). A stand-in is a
smaller member of the same class and is called one wherever it is shown.
"""

import re
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import nn

from lib.errors import UserError
from lib.models.mobilenet_v2 import MobileNetV2
from lib.models.resnet import PreActResNet, ResNet
from lib.models.vgg import VGG, VGG16_GROUPS
from lib.models.wide_resnet import WideResNet, WideResNetWithSubBlock

Model = Callable[..., nn.Module]  # of classes and channels

BLOCKS = {"8": (1, 1, 1), "10": (1, 1, 1, 1), "18": (2, 2, 2, 2), "34": (3, 4, 6, 3)}  # per stage, by depth
GUIDE_STRIDES = {"8": (1, 1, 2), "18": (1, 1, 2, 2)}  # of the guides that LBGAT's code trains: they halve later
MOBILE_SMALL = ((1, 8, 1, 2), (6, 16, 1, 1), (6, 32, 1, 2))


def _resnet(depth: str, width: str | None) -> Model:
    return partial(ResNet, BLOCKS[depth], int(width or 64))


def _guide(depth: str, width: str | None) -> Model:
    return partial(ResNet, BLOCKS[depth], int(width or 64), GUIDE_STRIDES[depth])


def _pre_act_resnet(depth: str, width: str | None) -> Model:
    return partial(PreActResNet, BLOCKS[depth], int(width or 64))


def _wide_resnet(depth: str, widen: str, silu: str | None) -> Model:
    return partial(WideResNet, int(depth), int(widen), F.silu if silu else F.relu)


def _with_sub_block(depth: str, widen: str) -> Model:
    return partial(WideResNetWithSubBlock, int(depth), int(widen))


def _vgg16(width: str | None) -> Model:
    return partial(VGG, [[n * int(width or 64) // 64 for n in group] for group in VGG16_GROUPS])


WIDTH, WIDE = r"(?:-w([1-9]\d{0,3}))?", r"WideResNet-(10|16|22|28|34|40|46|58|70|106)-([1-9]\d?)"
PATTERNS: dict[str, tuple[str, Callable[..., Model]]] = {
    "ResNet{8, 10, 18, 34}[-w<width>]": (rf"ResNet(8|10|18|34){WIDTH}", _resnet),
    "ResNet{8, 18}[-w<width>]-guide": (rf"ResNet(8|18){WIDTH}-guide", _guide),
    "PreActResNet{8, 18, 34}[-w<width>]": (rf"PreActResNet(8|18|34){WIDTH}", _pre_act_resnet),
    "WideResNet-<depth>-<widening>[-silu]": (rf"{WIDE}(-silu)?", _wide_resnet),
    "WideResNet-<depth>-<widening>-sub-block": (rf"{WIDE}-sub-block", _with_sub_block),
    "MobileNetV2": ("MobileNetV2", lambda: MobileNetV2),
    "MobileNetV2-small": ("MobileNetV2-small", lambda: partial(MobileNetV2, MOBILE_SMALL, stem=8, head=64)),
    "VGG16[-w<width>]": (rf"VGG16{WIDTH}", _vgg16),
    "VGG-small": ("VGG-small", lambda: partial(VGG, ((8, 8), (16, 16), (32,)))),
}
"""How models are named -> the same as a regular expression, and what its groups make."""


def architecture(name: str) -> Model:
    """The class, with its sizes, that is called `name`; raises UserError with the patterns for any other name."""
    for pattern, make in PATTERNS.values():
        if match := re.fullmatch(pattern, name):
            return make(*match.groups())
    raise UserError(f"unknown model {name[:100]!r}; a model's name is one of: {', '.join(PATTERNS)}")


def build(name: str, *, classes: int, channels: int = 3) -> nn.Module:
    """The network called `name`, its weights drawn from torch's global generator; an unknown name is a UserError."""
    return architecture(name)(classes=classes, channels=channels)
