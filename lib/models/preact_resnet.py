"""Pre-activation ResNets (He et al. 2016b) in the form Tiny ImageNet teachers have, parameter names as in public code.

The form is an old one: no batch-norm or ReLU after the last block, and 2x2 averages of the last map, not one.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.shortcut import shortcut


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


class PreActResNet(nn.Module):
    """blocks[i] pre-activation blocks of width * 2**i channels per stage, halving the image at each but the first.

    The last map is averaged to 2x2 whatever its size: windows of 4 on the 8x8 map that 64x64 images leave after four
    stages, a copy of a 2x2 map, four copies of a 1x1 map. So the weights do not depend on the image's size.

    Shapes: (N, channels, H, W) in [0, 1] -> (N, classes) logits. PreActResNet-18 is blocks=(2, 2, 2, 2), width=64.
    """

    def __init__(self, blocks: Sequence[int], width: int, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        inputs = width
        for i, count in enumerate(blocks):
            stage = nn.Sequential()
            for j in range(count):
                stage.append(PreActBlock(inputs, width * 2**i, stride=2 if i > 0 and j == 0 else 1))
                inputs = width * 2**i
            self.add_module(f"layer{i + 1}", stage)
        self.stages = len(blocks)
        self.linear = nn.Linear(4 * inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return self.linear(F.adaptive_avg_pool2d(x, 2).flatten(1))
