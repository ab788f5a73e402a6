from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import divergence, make_training, pgd_by_hand
from torch import nn

from lib.attacks.fast import in_precision
from lib.errors import UserError
from lib.methods import METHODS, Nets
from lib.methods.rat import class_labels, row_slopes, with_features
from lib.train.weights import jittered

WEIGHTS = METHODS["rat_trades"].weights


# --- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_slopes_are_the_row_sums_of_the_last_layers_gradient(make_net, batch, precision):
    (x, y), net = batch, make_net().train()
    logits, features = with_features(in_precision(net, precision), x)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), net[4].weight)
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if precision == "fp32" else {"atol": 0.05, "rtol": 0.05}
    torch.testing.assert_close(row_slopes(logits, features, y), gradient.sum(1), **tolerance)
    assert not row_slopes(logits, features, y).requires_grad
    assert logits.requires_grad


@pytest.mark.parametrize(("classes", "left"), [(10, 0.8), (100, 0.98), (5, 0.6)])
def test_a_label_leaves_the_authors_share_to_the_other_classes(classes, left):
    slope, y = torch.randn(classes, dtype=torch.double), torch.arange(classes)
    q = class_labels(slope, y)
    torch.testing.assert_close(q.sum(1), torch.ones(classes, dtype=torch.double))
    torch.testing.assert_close(q.diagonal(), torch.full((classes,), 1 - left, dtype=torch.double))
    assert (q >= 0).all()
    lowest = slope.argmin()
    assert not q[y != lowest, lowest].any()
    ratio = q[0, 1:] / (slope - slope.min())[1:]
    torch.testing.assert_close(ratio[q[0, 1:] > 0], ratio[q[0, 1:] > 0].mean().expand((q[0, 1:] > 0).sum()))


def test_labels_of_equal_slopes_are_finite():
    q = class_labels(torch.zeros(10), torch.arange(3))
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.full((3,), 0.2))


def test_a_loss_of_equal_views_is_finite(make_net, batch):
    (x, y), net = batch, make_net().eval()
    terms = METHODS["rat_trades"].loss(Nets(net), x, x, y, **WEIGHTS)
    assert all(term.isfinite().all() for term in terms.values())


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: lambda x: net(x), lambda net: in_precision(net, "bf16")])
def test_the_features_are_what_the_last_linear_layer_was_fed_whatever_the_network_is_wrapped_in(wrap, batch):
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 7), nn.ReLU(), nn.Linear(7, 10))
    _, features = with_features(wrap(net), batch[0])
    torch.testing.assert_close(features, net[:3](batch[0]), atol=0.02, rtol=0.02)
    assert not features.requires_grad


def test_listening_ends_with_the_forward_even_one_that_fails(batch):
    def failing(x):
        raise ZeroDivisionError

    before = dict(nn.modules.module._global_forward_pre_hooks)
    with_features(nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), batch[0])
    with pytest.raises(ZeroDivisionError):
        with_features(failing, batch[0])
    assert nn.modules.module._global_forward_pre_hooks == before


def test_a_network_without_a_linear_layer_is_refused(batch):
    with pytest.raises(UserError, match="linear layer"):
        with_features(nn.Flatten(), batch[0])


def test_labels_are_of_the_slopes_size_and_share_of_the_batch_not_of_its_order(make_net, batch):
    (x, y), net = batch, make_net().eval()
    x_adv, order = (x + 0.03).clamp(0, 1), torch.tensor([3, 1, 5, 0, 2, 4])
    terms = METHODS["rat_trades"].loss(Nets(net), x, x_adv, y, **WEIGHTS)
    again = METHODS["rat_trades"].loss(Nets(net), x[order], x_adv[order], y[order], **WEIGHTS)
    for name, term in terms.items():
        torch.testing.assert_close(again[name], term[order])


# --- the noise under the attack -----------------------------------------------------------------------------------


def state(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_the_noise_is_on_the_convolutions_alone_and_leaves_no_trace():
    net = nn.Sequential(nn.Conv2d(8, 64, 5), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3, bias=True), nn.Linear(64, 10))
    before, rng = state(net), torch.get_rng_state()
    with jittered(net, 1e-4, torch.Generator().manual_seed(1)):
        inside = state(net)
    again, other = [], []
    for seed, kept in ((1, again), (2, other)):
        with jittered(net, 1e-4, torch.Generator().manual_seed(seed)):
            kept.append(net[2].weight.clone())
    assert {name for name in before if not inside[name].equal(before[name])} == {"0.weight", "2.weight"}
    noise = inside["2.weight"] - before["2.weight"]
    assert noise.std().item() == pytest.approx(1e-4, rel=0.02)
    assert abs(noise.mean().item()) < 2e-6
    assert all(tensor.equal(before[name]) for name, tensor in net.state_dict().items())
    assert again[0].equal(inside["2.weight"])
    assert not other[0].equal(inside["2.weight"])
    assert torch.get_rng_state().equal(rng)


def test_the_weights_come_back_even_from_an_error(make_net):
    net = make_net()
    before = state(net)
    with pytest.raises(ZeroDivisionError), jittered(net, 0.1, torch.Generator()):
        _ = 1 / 0
    assert all(tensor.equal(before[name]) for name, tensor in net.state_dict().items())


def test_rats_attack_is_trades_on_the_noisy_network(make_net, batch):
    (x, y), student = batch, make_net()
    training = make_training("rat_trades", student, None, x, y)
    without = make_training("trades", deepcopy(student), None, x, y).craft(x, y)[0]
    assert training.method.attack_noise == 1e-4
    training.method = replace(training.method, attack_noise=0.3)  # so large that it decides signs
    noisy, generator = deepcopy(student).eval(), torch.Generator().manual_seed(0)
    noisy[0].weight.data += 0.3 * torch.randn(noisy[0].weight.shape, generator=generator)
    start, clean = x + 0.001 * torch.randn(x.shape, generator=generator), noisy(x).softmax(1).detach()
    x_adv = pgd_by_hand(lambda z: divergence(clean, noisy(z).softmax(1)), x, start)
    before = state(student)
    torch.testing.assert_close(training.craft(x, y)[0], x_adv)
    assert not x_adv.allclose(without, atol=0.02)
    assert all(tensor.equal(before[name]) for name, tensor in student.state_dict().items())


def test_a_method_without_noise_draws_none(make_net, batch):
    student = make_net()
    drawn = {}
    for name in ("trades", "rat_trades"):
        training = make_training(name, deepcopy(student), None, *batch)
        training.craft(*batch)
        drawn[name] = training.generator.get_state()
    generator = torch.Generator().manual_seed(0)
    torch.randn(batch[0].shape, generator=generator)
    assert drawn["trades"].equal(generator.get_state())
    assert not drawn["rat_trades"].equal(drawn["trades"])
