import gc
import weakref
from copy import deepcopy

import pytest
import torch
from torch import nn

from lib.attacks.folding import Folded, folded, same_answers
from lib.experiment.parameters import scales
from lib.models import build
from lib.models.resnet import PreActBlock
from lib.models.wide_resnet import WideBlock, WideResNet


def parameters(name):
    with torch.device("meta"):
        return sum(p.numel() for p in build(name, classes=10).parameters())


SMALL = sorted({name for scale in scales().values() for name in scale["models"].values() if parameters(name) < 1e6})


def lived(net, channels=3):
    """`net` in eval mode, its batch-norms' statistics, scales and shifts far from those of a fresh one."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    net.train()
    with torch.no_grad():
        for _ in range(5):
            net(2 * torch.rand(8, channels, 8, 8) + 0.3)
    return net.eval()


def assert_same_answers(net, folded_net, channels=3):
    x = torch.rand(5, channels, 8, 8)
    assert (net(x) - folded_net(x)).abs().max() < 1e-5


def norms_left(net):
    """The batch-norms that its graph still calls."""
    modules = dict(net.named_modules())
    called = [modules[node.target] for node in net.graph.nodes if node.op == "call_module"]
    return sum(isinstance(module, nn.BatchNorm2d) for module in called)


@pytest.fixture
def net():
    return lived(build("ResNet8-w8", classes=10))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SMALL)
def test_a_folded_network_is_the_network_in_eval_mode(name, channels):
    net = lived(build(name, classes=10, channels=channels), channels)
    made = folded(net)
    assert made is not net
    assert_same_answers(net, made, channels)


@pytest.mark.parametrize("name", SMALL)
def test_every_batch_norm_behind_a_convolution_is_gone_and_no_other(name):
    net = build(name, classes=10).eval()
    left = sum(isinstance(module, PreActBlock | WideBlock) for module in net.modules())  # each block's first
    if isinstance(net, WideResNet):  # it ends with one of its own; where it widens at once, the stem feeds only a norm
        left += 1 - (net.block1.layer[0].convShortcut is not None)
    assert norms_left(folded(net)) == left


def test_the_gradient_of_the_image_is_the_networks_own(net):
    x = torch.rand(3, 3, 8, 8, requires_grad=True)
    own, through = (torch.autograd.grad(made(x).logsumexp(1).sum(), x)[0] for made in (net, folded(net)))
    torch.testing.assert_close(through, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["weights", "statistics"])
def test_folding_again_follows_what_has_changed_since(net, mode):
    before = folded(net)(x := torch.rand(5, 3, 8, 8)).detach()
    if mode == "weights":
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1.1).add_(0.01)
    else:
        lived(net)
    assert (net(x) - before).abs().max() > 1e-2
    assert_same_answers(net, folded(net))


def test_a_network_is_traced_once(net):
    assert folded(net) is folded(net)
    assert folded(deepcopy(net)) is not folded(net)


def test_the_network_itself_is_left_as_it_was(net):
    modules, state = dict(net.named_modules()), {key: t.clone() for key, t in net.state_dict().items()}
    trained = [p.requires_grad for p in net.parameters()]
    made = folded(net)
    made(torch.rand(2, 3, 8, 8)).sum().backward()
    after = dict(net.named_modules())
    assert after.keys() == modules.keys()
    assert all(after[name] is module for name, module in modules.items())
    assert all(net.state_dict()[key].equal(tensor) for key, tensor in state.items())
    assert [p.requires_grad for p in net.parameters()] == trained
    assert net.conv1.bias is None
    assert not net.training


def test_training_goes_on_as_if_nothing_had_been_folded(net):
    twin, x = deepcopy(net), torch.rand(4, 3, 8, 8)
    folded(net)
    for each in (net, twin):
        each.train()(x).square().sum().backward()
    for (key, p), other in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert p.grad.equal(other.grad), key
    assert all(map(torch.equal, net.state_dict().values(), twin.state_dict().values()))


class Untraceable(nn.Module):
    """Decides by the values of its images."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        out = self.norm(self.conv(x)).mean((2, 3))
        return out if x.sum() > 0 else -out


@pytest.mark.parametrize(
    "make",
    [
        Untraceable,
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 2)),
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 2)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4, track_running_stats=False)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4, affine=False)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.BatchNorm2d(4)),
    ],
    ids=["untraceable", "no convolution", "norm first", "no statistics", "not affine", "something between"],
)
def test_a_network_that_cannot_be_folded_is_used_as_it_is(make):
    net = make().eval()
    assert folded(net) is net
    assert folded(net) is net


class UsedTwice(nn.Module):
    """The convolution's output is normalised, and also added as it is."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.again, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        raw = self.conv(x)
        return self.last(self.again(self.norm(raw) + raw)).mean((2, 3))


def test_a_convolution_whose_output_is_used_twice_is_not_folded():
    net = lived(UsedTwice())
    made = Folded(net)
    assert [conv for conv, _, _ in made.pairs] == [net.again]
    assert_same_answers(net, made.refresh())


def test_a_convolution_with_a_bias_of_its_own_keeps_it():
    net = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))
    nn.init.uniform_(net[0].bias, 1, 2)
    assert_same_answers(net, folded(net))


def test_a_forgotten_network_takes_its_trace_along():
    net = build("ResNet8-w8", classes=10).eval()
    made, forgotten = weakref.ref(folded(net)), weakref.ref(net)
    del net
    gc.collect()  # the network, and with it the trace's entry
    gc.collect()  # the trace, a circle of its own
    assert forgotten() is None
    assert made() is None


class CalledTwice(nn.Module):
    """One convolution in two places, one of them before a batch-norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.conv(self.norm(self.conv(x))).mean((2, 3))


def test_a_convolution_that_is_called_twice_is_not_folded():
    net = lived(CalledTwice())
    assert not Folded(net).pairs
    assert_same_answers(net, folded(net))


# --- a network that changes after it was folded --------------------------------------------------------------------


def test_a_network_with_hooks_is_not_folded_because_a_trace_leaves_them_out(net):
    assert folded(net) is not net
    handle = net.register_forward_pre_hook(lambda module, inputs: (inputs[0].flip(3),))
    assert folded(net) is net
    handle.remove()
    assert folded(net) is not net


def test_a_network_whose_module_was_replaced_is_folded_anew(net):
    folded(net)
    net.linear = nn.Linear(net.linear.in_features, 10)
    assert_same_answers(net, folded(net))
    block = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    net.conv1 = deepcopy(block)
    nn.init.normal_(net.conv1.weight)
    assert_same_answers(net, folded(net))


def test_a_network_of_another_type_is_folded_anew(net):
    folded(net)
    net.double()
    x = torch.rand(2, 3, 8, 8).double()
    assert (net(x) - folded(net)(x)).abs().max() < 1e-10


class Steered(nn.Module):
    """An attribute decides what is computed, or chance does."""

    def __init__(self, net):
        super().__init__()
        self.net, self.turned, self.spread = net, False, 0.0

    def forward(self, x):
        x = x.flip(3) if self.turned else x
        return self.net(x + self.spread * torch.randn(1, 3, 8, 8) if self.spread else x)


@pytest.mark.parametrize(("name", "value"), [("turned", True), ("spread", 0.5)])
def test_what_a_trace_cannot_see_is_found_by_the_answers(net, name, value):
    steered, x = Steered(net).eval(), torch.rand(4, 3, 8, 8)
    assert same_answers(steered, folded(steered), x)
    setattr(steered, name, value)
    assert not same_answers(steered, folded(steered), x)
