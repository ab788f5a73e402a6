import subprocess
import sys

import pytest
import torch
from torch import nn

from lib import ROOT
from lib.models.resnet import Subsampled, shortcut


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("stride", [2, 3])
def test_a_subsampled_convolution_is_the_strided_one_in_value_and_in_every_gradient(size, stride):
    one, other = Subsampled(8, 5, 1, stride, bias=False), nn.Conv2d(8, 5, 1, stride, bias=False)
    other.load_state_dict(one.state_dict())
    x = torch.rand(2, 8, size, size)
    outs, gradients = [], []
    for conv in (one, other):
        z = x.clone().requires_grad_()
        outs.append(conv(z))
        gradients.append(torch.autograd.grad(outs[-1].square().sum(), [z, conv.weight]))
    torch.testing.assert_close(outs[0], outs[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(("inputs", "stride", "kind"), [(8, 2, Subsampled), (8, 1, nn.Conv2d), (16, 2, nn.Conv2d)])
def test_only_narrow_strided_shortcuts_are_subsampled(inputs, stride, kind):
    assert type(shortcut(inputs, 16, stride)) is kind


@pytest.mark.slow
def test_a_small_network_trains_on_large_images_in_channels_last_memory():
    code = """
import torch
from lib.models import build
net = build("ResNet8-w8", classes=5, channels=3).to(memory_format=torch.channels_last)
for _ in range(3):
    net(torch.rand(4, 3, 64, 64)).sum().backward()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
