"""Wide ResNets (Zagoruyko & Komodakis 2016), pre-activation, parameter names as in the public checkpoints."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lib.errors import UserError
from lib.models.resnet import shortcut, stage

Activation = Callable[[Tensor], Tensor]


class WideBlock(nn.Module):
    """conv(a(bn(conv(a(bn(x)))))) + shortcut: x, or a 1x1 of the activated x where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation = F.relu) -> None:
        super().__init__()
        self.activation = activation
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = None if inputs == outputs else shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation(self.bn1(x))
        out = self.conv2(self.activation(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


def wide_group(inputs: int, outputs: int, count: int, stride: int, activation: Activation = F.relu) -> nn.Sequential:
    """`count` blocks, named layer; the first changes width and stride."""
    block = partial(WideBlock, activation=activation)
    return nn.Sequential(OrderedDict(layer=stage(block, inputs, outputs, count, stride)))


class WideResNet(nn.Module):
    """Three groups of (depth - 4) / 6 blocks with 16, 32, 64 times `widen` channels and one activation throughout."""

    def __init__(
        self, depth: int, widen: int, activation: Activation = F.relu, *, classes: int, channels: int = 3
    ) -> None:
        super().__init__()
        self.activation = activation
        count, rest = divmod(depth - 4, 6)
        if rest or count < 1:
            raise UserError(f"a wide ResNet's depth is 10, 16, 22, 28, 34, ..., got {depth}")
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.block1 = wide_group(widths[0], widths[1], count, 1, activation)
        self.block2 = wide_group(widths[1], widths[2], count, 2, activation)
        self.block3 = wide_group(widths[2], widths[3], count, 2, activation)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.activation(self.bn1(x)).mean((2, 3)))


class WideResNetWithSubBlock(WideResNet):
    """A WideResNet that also stores `sub_block1`, a second first group that no image ever passes.

    TRADES' code has it, so checkpoints descending from that code carry its weights; with it they load strictly.
    """

    def __init__(self, depth: int, widen: int, *, classes: int, channels: int = 3) -> None:
        super().__init__(depth, widen, classes=classes, channels=channels)
        self.sub_block1 = wide_group(16, 16 * widen, (depth - 4) // 6, 1)
