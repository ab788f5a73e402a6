"""DeepMind's Wide ResNets and pre-activation ResNets (Gowal et al. 2020, Rebuffi et al. 2021), named as in their files.

They are not the other networks under other names: SiLU throughout, layers of stride 2 pad right and bottom only, the
pre-activation shortcut is a 3x3 of the raw input, and the normalisation, which no file holds, is the network's own.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.resnet import shortcut, stage

NORMALISATIONS = {  # number of classes -> mean and std per channel, for images in [0, 1]; any other has CIFAR-10's
    10: ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),  # CIFAR-10
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),  # CIFAR-100
    200: ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),  # Tiny ImageNet
}


class Normalise(nn.Module):
    """(x - mean) / std, per channel: images stay in [0, 1] outside of the network, and no file needs to hold it."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        for name, half in (("mean", mean), ("std", std)):
            self.register_buffer(name, half.float().reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution without bias; of stride 2 it pads right and bottom only, of stride 1 on every side."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride, padding=1 if stride == 1 else 0, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.stride == (1, 1) else F.pad(x, (0, 1, 0, 1)))


class DeepMindWideBlock(nn.Module):
    """conv(a(bn(conv(a(bn(x)))))) + shortcut, a = silu: x, or a 1x1 of the activated x where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0, self.conv_0 = nn.BatchNorm2d(inputs), Conv3x3(inputs, outputs, stride)
        self.batchnorm_1, self.conv_1 = nn.BatchNorm2d(outputs), Conv3x3(outputs, outputs)
        self.shortcut = None if inputs == outputs else shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.silu(self.batchnorm_0(x))
        out = self.conv_1(F.silu(self.batchnorm_1(self.conv_0(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class DeepMindPreActBlock(nn.Module):
    """conv(a(bn(conv(a(bn(x)))))) + shortcut, a = silu: x, or a 3x3 of the raw x where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0, self.conv_2d_1 = nn.BatchNorm2d(inputs), Conv3x3(inputs, outputs, stride)
        self.batchnorm_1, self.conv_2d_2 = nn.BatchNorm2d(outputs), Conv3x3(outputs, outputs)
        self.shortcut = nn.Identity() if (stride, inputs) == (1, outputs) else Conv3x3(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_2d_1(F.silu(self.batchnorm_0(x)))
        return self.conv_2d_2(F.silu(self.batchnorm_1(out))) + self.shortcut(x)


class DeepMindNet(nn.Sequential):
    """logits(mean over pixels of silu(bn(layers((x - mean) / std)))), mean and std by the number of classes."""

    def __init__(self, layers: dict[str, nn.Module], width: int, classes: int, channels: int) -> None:
        mean, std = (torch.tensor(half[:channels]) for half in NORMALISATIONS.get(classes, NORMALISATIONS[10]))
        ends = {"batchnorm": nn.BatchNorm2d(width), "silu": nn.SiLU(), "pool": nn.AdaptiveAvgPool2d(1)}
        ends |= {"flatten": nn.Flatten(), "logits": nn.Linear(width, classes)}
        super().__init__(OrderedDict({"normalise": Normalise(mean, std)} | layers | ends))


class DeepMindWideResNet(DeepMindNet):
    """Three groups of (depth - 4) / 6 blocks with 16, 32, 64 times `widen` channels."""

    def __init__(self, depth: int, widen: int, *, classes: int, channels: int = 3) -> None:
        sizes, count = ((16, 16 * widen), (16 * widen, 32 * widen), (32 * widen, 64 * widen)), (depth - 4) // 6
        groups = (stage(DeepMindWideBlock, *size, count, 2 if i else 1) for i, size in enumerate(sizes))
        layer = nn.Sequential(*(nn.Sequential(OrderedDict(block=group)) for group in groups))
        super().__init__({"init_conv": Conv3x3(channels, 16), "layer": layer}, 64 * widen, classes, channels)


class DeepMindPreActResNet(DeepMindNet):
    """blocks[i] pre-activation blocks of width * 2**i channels per stage, halving the image at each but the first."""

    def __init__(self, blocks: Sequence[int], width: int, *, classes: int, channels: int = 3) -> None:
        layers: dict[str, nn.Module] = {"conv_2d": Conv3x3(channels, width)}
        for i, count in enumerate(blocks):
            inputs, stride = (width * 2 ** (i - 1), 2) if i else (width, 1)
            layers[f"layer_{i}"] = stage(DeepMindPreActBlock, inputs, width * 2**i, count, stride)
        super().__init__(layers, width * 2 ** (len(blocks) - 1), classes, channels)
