import pytest
import torch
from torch import nn

from lib.evaluate.landscape import against_radius, against_steps, surface
from lib.losses import cross_entropy


@pytest.fixture
def net(make_net):
    return make_net().eval()


def test_the_curve_over_the_radius_begins_at_the_clean_accuracy_and_never_rises_for_a_linear_network():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.rand(20, 3, 2, 2)
    y = net(x).argmax(1)
    curve = against_radius(net, x, y, [0.0, 0.05, 0.2, 1.0])
    assert curve[0] == 100.0
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] < 100


def test_the_curve_over_the_steps_has_the_start_and_every_iterate(net):
    x = torch.rand(9, 3, 4, 4)
    y = net(x).argmax(1)
    longer, shorter = against_steps(net, x, y, 0.1, 6), against_steps(net, x, y, 0.1, 3)
    assert len(longer) == 7
    assert longer[:4] == shorter


def test_the_surface_holds_the_images_own_loss_in_its_middle_and_rises_along_the_gradient(net):
    x, y = torch.full((1, 3, 4, 4), 0.5), torch.tensor([3])
    offsets, losses = surface(net, x, y, 0.01, points=5)
    assert (offsets[2], losses.shape) == (0, (5, 5))
    torch.testing.assert_close(losses[2, 2], cross_entropy(net(x), y)[0].detach())
    assert losses[4, 2] > losses[2, 2] > losses[0, 2]
