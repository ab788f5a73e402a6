from copy import deepcopy

import pytest
import torch

from lib.errors import UserError
from lib.losses import cross_entropy
from lib.train.weights import AWP, EMA, perturbed

GAMMA = 0.05


@pytest.fixture
def net(make_net, batch):
    """A network in train mode whose batch-norm has seen something."""
    net = make_net()
    net(3 * batch[0] + 1)
    return net


@pytest.fixture
def loss(batch):
    x, y = batch
    return lambda net: cross_entropy(net(x), y).mean()


def state(net):
    return {key: tensor.clone() for key, tensor in net.state_dict().items()}


def inside(net, loss, gamma=GAMMA):
    """The weights before and inside the block."""
    before = state(net)
    with perturbed(net, loss, gamma):
        return before, state(net)


def directions(before, after):
    """w' - w of each tensor with more than one dimension, by name."""
    return {key: after[key] - before[key] for key in before if before[key].dim() > 1}


# --- adversarial weight perturbation ------------------------------------------------------------------------------


def test_without_a_step_the_block_leaves_the_weights_as_they_were_to_rounding(net, loss):
    before, perturbed_weights = inside(net, loss)
    assert not perturbed_weights["0.weight"].allclose(before["0.weight"])
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=1e-6)


def test_each_tensor_is_moved_by_gamma_times_its_own_norm(net, loss):
    before, after = inside(net, loss)
    moved = directions(before, after)
    assert set(moved) == {"0.weight", "4.weight"}
    for key, step in moved.items():
        torch.testing.assert_close(step.norm(), GAMMA * before[key].norm(), rtol=1e-4, atol=0)


def test_batch_norm_and_biases_are_not_perturbed_and_no_statistics_move(net, loss):
    before, after = inside(net, loss)
    kept = [key for key in before if before[key].dim() <= 1]
    assert {"0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"} <= set(kept)
    assert all(after[key].equal(before[key]) for key in kept)
    assert all(net.state_dict()[key].equal(before[key]) for key in kept)


def test_the_direction_is_the_authors_proxys_step_brought_to_length(net, loss):
    proxy = deepcopy(net).train()
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-loss(proxy)).backward()
    optimizer.step()
    before, after = inside(net, loss)
    for key, step in directions(before, after).items():
        difference = proxy.state_dict()[key] - before[key]
        theirs = before[key].norm() / (difference.norm() + 1e-20) * difference
        torch.testing.assert_close(step, GAMMA * theirs, rtol=0, atol=2e-4 * GAMMA * theirs.norm().item())


def test_the_perturbation_raises_the_loss_it_is_made_of(net, loss):
    with torch.no_grad():
        before = loss(net)
    with perturbed(net, loss, GAMMA), torch.no_grad():
        assert loss(net) > before


@pytest.mark.parametrize("train", [True, False])
def test_the_loss_is_taken_in_the_networks_present_mode(net, batch, train):
    net.train(train)
    outputs = []

    def loss(perturbed_net):
        outputs.append(perturbed_net(batch[0]).detach())
        return perturbed_net(batch[0]).square().mean()

    statistics = net[1].running_mean.clone()
    with perturbed(net, loss, GAMMA):
        pass
    assert net.training == train
    assert net[1].running_mean.equal(statistics)
    torch.testing.assert_close(outputs[0], net(batch[0]).detach(), rtol=1e-4, atol=1e-5)


def test_an_optimisers_step_inside_acts_on_the_perturbed_weights_decay_included(net, loss):
    reference = deepcopy(net)
    with perturbed(net, loss, GAMMA):
        perturbation = {key: step.clone() for key, step in directions(state(reference), state(net)).items()}
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.01)
        loss(net).backward()
        optimizer.step()
    moved = deepcopy(reference)
    with torch.no_grad():
        for key, step in perturbation.items():
            moved.get_parameter(key).add_(step)
    slopes = torch.autograd.grad(loss(moved), list(moved.parameters()))
    for (key, w), slope in zip(moved.named_parameters(), slopes, strict=True):
        expected = w - 0.1 * (slope + 0.01 * w) - perturbation.get(key, torch.zeros(()))
        torch.testing.assert_close(net.get_parameter(key).detach(), expected.detach(), rtol=1e-4, atol=1e-6)


def test_perturbing_leaves_no_gradient_behind_and_works_where_gradients_are_off(net, loss):
    with torch.no_grad(), perturbed(net, loss, GAMMA):
        assert all(p.grad is None for p in net.parameters())
    assert all(p.grad is None for p in net.parameters())


def test_an_error_inside_the_block_takes_the_perturbation_back_too(net, loss):
    before = state(net)
    with pytest.raises(ZeroDivisionError), perturbed(net, loss, GAMMA):
        _ = 1 / 0
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=1e-6)


def test_a_tensor_the_loss_does_not_see_stays_as_it_is(net, batch):
    before, after = inside(net, lambda net: net(batch[0]).mean() * 0)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{"gamma": 0.0}, {"gamma": -1.0}, {"warmup": -0.1}, {"warmup": 1.1}])
def test_a_perturbation_that_makes_no_sense_is_refused(settings):
    with pytest.raises(UserError, match="AWP wants"):
        AWP(**settings)


# --- the average of the weights -----------------------------------------------------------------------------------


def walk(net, steps):
    """The network at each of some steps of a random walk, buffers included."""
    for _ in range(steps):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        net(torch.rand(4, 3, 4, 4))
        yield


@pytest.mark.parametrize("decay", [0.995, 0.3])
def test_the_average_follows_the_ramp_until_its_decay(net, decay):
    average, expected = EMA(net, decay), deepcopy(net.state_dict())
    for t, _ in enumerate(walk(net, 8)):
        d = min(decay, (1 + t) / (10 + t))
        for key, w in net.named_parameters():
            expected[key] = d * expected[key] + (1 - d) * w.detach()
        average.update(net)
    for key, _ in net.named_parameters():
        torch.testing.assert_close(average.net.state_dict()[key], expected[key], rtol=1e-5, atol=1e-6)
    assert average.steps == 8


def test_the_averages_buffers_are_the_networks_own_at_its_last_update(net):
    average = EMA(net, 0.9)
    for _ in walk(net, 3):
        average.update(net)
    for key, buffer in net.named_buffers():
        assert average.net.get_buffer(key).equal(buffer)
        assert average.net.get_buffer(key) is not buffer
    kept = average.net[1].running_mean.clone()
    net(torch.rand(4, 3, 4, 4))
    assert average.net[1].running_mean.equal(kept)


def test_the_average_is_a_network_of_its_own_in_eval_mode_that_nothing_trains(net):
    average, before = EMA(net, 0.9), state(net)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert not any(m.training for m in average.net.modules())
    assert not any(p.requires_grad for p in average.net.parameters())
    for _ in walk(net, 1):
        pass
    assert all(average.net.state_dict()[key].equal(tensor) for key, tensor in before.items())
    before = state(net)
    average.update(net)
    assert all(net.state_dict()[key].equal(tensor) for key, tensor in before.items())
