"""ResNets for small images (He et al. 2016; CIFAR stem: 3x3, stride 1, no pooling), post-activation."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.shortcut import shortcut


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


class ResNet(nn.Module):
    """blocks[i] basic blocks of width * 2**i channels per stage, whose first one has strides[i].

    Without `strides` every stage but the first halves the image.

    Shapes: (N, channels, H, W) in [0, 1] -> (N, classes) logits. Width 64 makes blocks=(2, 2, 2, 2) ResNet-18 and
    (3, 4, 6, 3) ResNet-34.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        width: int,
        strides: Sequence[int] | None = None,
        *,
        classes: int,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs, strides = width, strides or (1, *[2] * (len(blocks) - 1))
        for i, (count, stride) in enumerate(zip(blocks, strides, strict=True)):
            stage = nn.Sequential()
            for j in range(count):
                stage.append(BasicBlock(inputs, width * 2**i, stride=stride if j == 0 else 1))
                inputs = width * 2**i
            self.add_module(f"layer{i + 1}", stage)
        self.stages = len(blocks)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return self.linear(x.mean((2, 3)))
