"""A weight's bf16 cast is made again for the backward pass: nothing kept, nothing changed."""

import pytest
import torch
from torch import nn

from lib.attacks.engine import in_precision
from lib.attacks.recast import Cast, recast


def loss_of(net, x):
    return in_precision(net, "bf16")(x).square().sum()


def plainly(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net(x).float().square().sum()


@pytest.fixture
def net(make_net):
    return make_net().train()


def test_gradients_are_those_of_plain_autocast(net):
    x = torch.rand(6, 3, 4, 4, requires_grad=True)
    inputs = [x, *net.parameters()]
    ours, theirs = (torch.autograd.grad(loss(net, x), inputs) for loss in (loss_of, plainly))
    assert all(one.equal(other) for one, other in zip(ours, theirs, strict=True))


def saved_by(net, x):
    """What `net`'s forward under autocast saves for its backward pass."""
    kept = recast()
    packed = []

    def pack(tensor):
        packed.append(kept.pack_hook(tensor))
        return packed[-1]

    with (
        torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
        torch.autograd.graph.saved_tensors_hooks(pack, kept.unpack_hook),
    ):
        net(x).float().sum().backward()
    return packed


def test_of_every_weight_that_is_cast_its_parameter_is_saved(net):
    packed = saved_by(net, torch.rand(6, 3, 4, 4))
    casts = [one.parameter for one in packed if isinstance(one, Cast)]
    weights = [module.weight for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert {id(weight) for weight in weights} <= {id(cast) for cast in casts}
    sizes = {weight.shape for weight in weights}
    assert not [one for one in packed if isinstance(one, torch.Tensor) and one.shape in sizes]


def test_frozen_weights_and_activations_are_saved_as_they_are(net):
    net.requires_grad_(False)
    packed = saved_by(net, torch.rand(6, 3, 4, 4, requires_grad=True))
    assert packed
    assert not any(isinstance(one, Cast) for one in packed)


def test_a_weight_that_was_changed_before_the_backward_pass_stops_it(net):
    loss = loss_of(net, torch.rand(6, 3, 4, 4))
    with torch.no_grad():
        next(net.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="changed between the forward pass and its backward"):
        loss.backward()
