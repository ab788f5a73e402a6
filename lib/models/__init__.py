"""The networks by name, all (N, channels, H, W) in [0, 1] -> (N, classes) logits.

A name is a pattern's: ResNet18-w16 is ResNet-18 with 16 channels in its first stage (without -w: 64). A stand-in is a
smaller member of the same class and is called one wherever it is shown.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.errors import UserError
from lib.models.deepmind import DeepMindPreActResNet, DeepMindWideResNet
from lib.models.mobilenet_v2 import MobileNetV2
from lib.models.resnet import PreActResNet, ResNet
from lib.models.vgg import VGG, VGG16_GROUPS
from lib.models.wide_resnet import WideResNet, WideResNetWithSubBlock

Model = Callable[..., nn.Module]  # of classes and channels

BLOCKS = {"8": (1, 1, 1), "10": (1, 1, 1, 1), "18": (2, 2, 2, 2), "34": (3, 4, 6, 3)}  # per stage, by depth
GUIDE_STRIDES = {"8": (1, 1, 2), "18": (1, 1, 2, 2)}  # of the guides that LBGAT's code trains: they halve later
WIDE_RESNETS: dict[str | None, Model] = {None: WideResNet, "-silu": partial(WideResNet, activation=F.silu)}
WIDE_RESNETS |= {"-sub-block": WideResNetWithSubBlock, "-deepmind": DeepMindWideResNet}
MOBILE_SMALL = ((1, 8, 1, 2), (6, 16, 1, 1), (6, 32, 1, 2))


def _resnet(depth: str, width: str | None, guide: str = "") -> Model:
    return partial(ResNet, BLOCKS[depth], int(width or 64), GUIDE_STRIDES[depth] if guide else ())


def _pre_act_resnet(depth: str, width: str | None, deepmind: str | None) -> Model:
    return partial(DeepMindPreActResNet if deepmind else PreActResNet, BLOCKS[depth], int(width or 64))


def _wide_resnet(depth: str, widen: str, kind: str | None) -> Model:
    return partial(WIDE_RESNETS[kind], int(depth), int(widen))


def _vgg16(width: str | None) -> Model:
    return partial(VGG, [[n * int(width or 64) // 64 for n in group] for group in VGG16_GROUPS])


WIDTH, DEPTHS = r"(?:-w([1-9]\d{0,3}))?", "10|16|22|28|34|40|46|58|70|82|94|106"
WIDE = rf"WideResNet-({DEPTHS})-([1-9]\d?)(-silu|-sub-block|-deepmind)?"
PATTERNS: dict[str, tuple[str, Callable[..., Model]]] = {
    "ResNet{8, 10, 18, 34}[-w<width>]": (rf"ResNet(8|10|18|34){WIDTH}", _resnet),
    "ResNet{8, 18}[-w<width>]-guide": (rf"ResNet(8|18){WIDTH}(-guide)", _resnet),
    "PreActResNet{8, 18, 34}[-w<width>][-deepmind]": (rf"PreActResNet(8|18|34){WIDTH}(-deepmind)?", _pre_act_resnet),
    "WideResNet-<depth>-<widening>[-silu, -sub-block, -deepmind]": (WIDE, _wide_resnet),
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


def fitting(state: Mapping[str, Tensor]) -> list[str]:
    """The networks whose tensors have the names and shapes of these; where there are several, their logits differ."""
    shapes = _shapes(state)
    maps, heads = ([shape for shape in shapes.values() if len(shape) == order] for order in (4, 2))
    if not maps or len(heads) != 1:  # every network has one matrix, of as many rows as classes
        return []
    widths, channels = [shape[0] for shape in maps], 3 if any(shape[1] == 3 for shape in maps) else 1
    width = "" if min(widths) == 64 else f"-w{min(widths)}"
    depths = (f"{6 * ((len(maps) - 3) // per_block) + 4}" for per_block in (6, 8))  # 8 maps with a sub-block
    sizes = {"[-w<width>]": width, "<depth>": ", ".join(depths), "<widening>": f"{max(widths) // 64}"}
    names = []
    for pattern, (spelt, _) in PATTERNS.items():
        parts = (sizes.get(part, part) for part in re.split(r"(\{.*?\}|\[.*?\]|<.*?>)", pattern))
        options = [part.replace("[", ", ").strip("{]}").split(", ") for part in parts]  # what is in [] may be left out
        names += [name for name in map("".join, product(*options)) if re.fullmatch(spelt, name)]
    with torch.device("meta"):
        nets = {name: build(name, classes=heads[0][0], channels=channels).state_dict() for name in names}
    return [name for name, own in nets.items() if _shapes(own) == shapes]


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shape of every tensor but of a batch-norm's counter, which old files lack."""
    return {key: tensor.shape for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
