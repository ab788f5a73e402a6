"""The 1x1 convolution with a stride that residual shortcuts use."""

import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 16  # input channels that oneDNN's kernels take at once


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
    kind = Subsampled if stride > 1 and inputs < BLOCK else nn.Conv2d
    return kind(inputs, outputs, 1, stride, bias=False)
