"""ResNets for small images (CIFAR stem: 3x3, stride 1, no pooling), post-activation and pre-activation.

He et al. 2016 and 2016b; parameter names as in public code.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN_BLOCK = 16  # input channels that oneDNN's kernels take at once


class Subsampled(nn.Conv2d):
    """A 1x1 convolution of every stride-th pixel: the values and gradients of the strided one, by another road.

    On CPUs, oneDNN's gradient of a strided 1x1 convolution with fewer input channels than its block writes past its
    buffer in channels-last memory, which corrupts the heap of small networks on larger images (oneDNN issue 6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        down, across = self.stride
        return F.conv2d(x[:, :, ::down, ::across], self.weight, self.bias)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """A 1x1 convolution without bias, safe for any number of inputs."""
    kind = Subsampled if stride > 1 and inputs < ONEDNN_BLOCK else nn.Conv2d
    return kind(inputs, outputs, 1, stride, bias=False)


def stage(block: Callable[..., nn.Module], inputs: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    """`count` blocks; the first changes width and stride."""
    return nn.Sequential(block(inputs, outputs, stride), *(block(outputs, outputs, 1) for _ in range(count - 1)))


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), 3x3 convolutions, a 1x1 shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(shortcut(inputs, outputs, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class PreActBlock(nn.Module):
    """conv(relu(bn(conv(a)))) + shortcut, a = relu(bn(x)): x, or a 1x1 convolution of a where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(shortcut(inputs, outputs, stride))

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class ResNet(nn.Module):
    """blocks[i] basic blocks of width * 2**i channels per stage, whose first one has strides[i].

    Without `strides` every stage but the first halves the image. ResNet-18 is blocks=(2, 2, 2, 2), width=64.
    """

    def __init__(
        self, blocks: Sequence[int], width: int, strides: Sequence[int] = (), *, classes: int, channels: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(blocks)
        self.linear = nn.Linear(_add_stages(self, BasicBlock, blocks, width, strides), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return self.linear(x.mean((2, 3)))


class PreActResNet(nn.Module):
    """blocks[i] pre-activation blocks of width * 2**i channels per stage, halving the image at each but the first.

    The form is that of Tiny ImageNet teachers: no batch-norm or ReLU after the last block, and the last map averaged to
    2x2 whatever its size (windows of 4 on the 8x8 map of 64x64 images, four copies of a 1x1 map). So the weights do not
    depend on the image's size.
    """

    def __init__(self, blocks: Sequence[int], width: int, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.stages = len(blocks)
        self.linear = nn.Linear(4 * _add_stages(self, PreActBlock, blocks, width), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return self.linear(F.adaptive_avg_pool2d(x, 2).flatten(1))


def _add_stages(
    net: nn.Module, block: type[nn.Module], blocks: Sequence[int], width: int, strides: Sequence[int] = ()
) -> int:
    """Give `net` its layer1, layer2, ...; the channels of the last."""
    for i, (count, stride) in enumerate(zip(blocks, strides or (1, *[2] * (len(blocks) - 1)), strict=True)):
        net.add_module(f"layer{i + 1}", stage(block, width * 2 ** max(i - 1, 0), width * 2**i, count, stride))
    return width * 2 ** (len(blocks) - 1)
