import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Generator, nn

from lib.attacks.jsma import jsma, published_target, wrong_target
from lib.data import load
from lib.errors import UserError

CLASSES = 4


def net_of(seed=0):
    """Four classes on images of 2x2x2 pixels, by a softplus layer; all logits of the grey image are 0."""
    torch.manual_seed(seed)
    hidden, last = nn.Linear(8, 6), nn.Linear(6, CLASSES)
    with torch.no_grad():
        hidden.weight.normal_(std=2)
        last.weight.normal_(std=2)
        hidden.bias.copy_(-hidden.weight.sum(1) / 2)
        last.bias.copy_(-last.weight.sum(1) * math.log(2))
    return nn.Sequential(nn.Flatten(), hidden, nn.Softplus(), last).double()


def linear(own, others, bias=-1e6):
    """Two classes whose logits have these gradients (D,) everywhere; class 0, the target, is out of reach."""
    weights, shift = torch.stack([own, others]), torch.tensor([bias, 0.0], dtype=own.dtype)
    return lambda x: x.flatten(1) @ weights.T + shift


def images(n=12):
    """Pixels of exactly 0 and 1 among them."""
    return (1.4 * torch.rand(n, 2, 2, 2, dtype=torch.double) - 0.2).clamp(0, 1)


def targets(n=12):
    return torch.randint(CLASSES, (n,))


def moved(x_adv, x):
    return (x_adv != x).flatten(1)


def accuracy(net, x, y):
    return (net(x).argmax(1) == y).double().mean().item()


def reference(net, x, target, theta, gamma):
    """The attack spelled out: one image, one class, one pair at a time, from the whole Jacobian (Papernot et al.)."""
    x_adv = x.clone()
    for i, t in enumerate(target.tolist()):
        pixels, raised = x_adv[i].view(-1), set()
        for _ in range(int(len(pixels) * gamma / 2)):
            if net(x_adv[i : i + 1]).argmax().item() == t:
                break
            jacobian = torch.autograd.functional.jacobian(net, x_adv[i : i + 1]).reshape(-1, len(pixels)).tolist()
            best, pair = 0.0, ()
            for p in range(len(pixels)):
                for q in range(p + 1, len(pixels)):
                    alpha = jacobian[t][p] + jacobian[t][q]
                    beta = sum(row[p] + row[q] for j, row in enumerate(jacobian) if j != t)
                    free = not {p, q} & raised
                    if free and alpha > 0 and beta < 0 and -alpha * beta > best:
                        best, pair = -alpha * beta, (p, q)
            if not pair:
                break
            raised |= {*pair}
            for p in pair:
                pixels[p] = min(pixels[p].item() + theta, 1)
    return x_adv


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("theta", "gamma"), [(0.1, 0.05), (0.1, 1.0), (0.3, 0.5), (0.3, 4.0), (1.0, 1.0)])
def test_jsma_equals_the_attack_spelled_out(theta, gamma, seed):
    net, x, target = net_of(seed), images(), targets()
    x_adv = jsma(net, x, target, theta=theta, gamma=gamma)
    assert moved(x_adv, x).any() == (gamma > 0.05)  # 8 pixels times 0.05 / 2 is no pair at all
    torch.testing.assert_close(x_adv, reference(net, x, target, theta, gamma), atol=1e-12, rtol=0)


def test_the_defaults_are_steps_of_a_tenth_on_one_pixel_in_twenty():
    x = torch.full((1, 3, 8, 8), 0.1)
    x_adv = jsma(linear(torch.ones(192), -torch.ones(192)), x, torch.tensor([0]))
    assert (x_adv - x).sum().item() == pytest.approx(4 * 2 * 0.1)  # int(192 * 0.05 / 2) = 4 pairs
    assert (x_adv - x).max().item() == pytest.approx(0.1)  # a pixel that was raised leaves the search


def test_the_best_pair_may_be_of_two_pixels_that_are_inadmissible_alone():
    own, others = torch.tensor([3.0, -1.0, 2.0, 0.0]), torch.tensor([1.0, -4.0, -1.0, -1.0])
    x = torch.full((1, 1, 2, 2), 0.5)
    x_adv = jsma(linear(own, others), x, torch.tensor([0]), gamma=0.5)
    assert moved(x_adv, x).tolist() == [[True, True, False, False]]  # 2 * 3, against 1 * 5 and 2 * 2


def test_the_derivatives_are_the_logits_not_the_softmaxs():
    own, others = torch.tensor([3.0, 3.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, -0.1, -0.1])
    x = torch.full((1, 1, 2, 2), 0.5)
    x_adv = jsma(linear(own, others, bias=-4.0), x, torch.tensor([0]), gamma=0.5)
    assert moved(x_adv, x).tolist() == [[False, False, True, True]]  # of the softmax the first two would be the best


@pytest.mark.parametrize("cloud", ["independent", "aligned", "opposed", "with ties", "constant"])
def test_the_pair_is_the_best_of_all_pairs_whatever_the_gradients(cloud):
    noise, own = torch.randn(2, 300, dtype=torch.double)
    others = {
        "independent": noise,
        "aligned": -own + 0.1 * noise,
        "opposed": own + 0.1 * noise,
        "with ties": noise.round(),
        "constant": -torch.ones(300, dtype=torch.double),
    }[cloud]
    own = {"with ties": own.round(), "constant": -others}.get(cloud, own)
    x = torch.full((1, 3, 10, 10), 0.5, dtype=torch.double)
    pair = moved(jsma(linear(own, others), x, torch.tensor([0]), gamma=2 / 300), x)[0].nonzero().squeeze(1)
    alpha, beta = own[:, None] + own, others[:, None] + others
    scores = torch.where((alpha > 0) & (beta < 0), -alpha * beta, 0.0).fill_diagonal_(0)
    assert len(pair) == 2
    assert scores[tuple(pair)] == scores.max() > 0


def test_a_pixel_at_1_is_searched_too_and_stays_as_it_is():
    own, others = torch.tensor([9.0, 5.0, 2.0, 1.0]), -torch.ones(4)
    x = torch.tensor([1.0, 0.5, 0.5, 0.5]).view(1, 1, 2, 2)
    x_adv = jsma(linear(own, others), x, torch.tensor([0]), theta=0.2, gamma=0.5)
    torch.testing.assert_close(x_adv.flatten(), torch.tensor([1.0, 0.7, 0.5, 0.5]))


def test_an_image_without_an_admissible_pair_stays():
    x = torch.full((1, 1, 2, 2), 0.5)
    assert jsma(linear(-torch.ones(4), -torch.ones(4)), x, torch.tensor([0]), gamma=1.0).equal(x)


@pytest.mark.parametrize("sign", [1, -1])
def test_without_an_admissible_pair_nothing_moves(sign):
    x = images()
    net = linear(sign * torch.ones(8, dtype=torch.double), sign * torch.ones(8, dtype=torch.double))
    assert jsma(net, x, targets() * 0, gamma=1.0).equal(x)


@pytest.mark.parametrize(("theta", "gamma"), [(0.1, 0.25), (0.1, 1.0), (0.7, 0.5), (0.3, 4.0)])
def test_no_more_pixels_move_than_allowed_by_no_more_than_theta_per_touch_inside_the_image_range(theta, gamma):
    net, x, target = net_of(), images(), targets()
    x_adv = jsma(net, x, target, theta=theta, gamma=gamma)
    steps = int(8 * gamma / 2)
    change = (x_adv - x).flatten(1)
    assert moved(x_adv, x).any()
    assert (moved(x_adv, x).sum(1) <= 2 * steps).all()
    assert change.min() >= 0  # theta > 0: pixels are only raised
    assert (change <= steps * theta + 1e-12).all()
    assert (change.sum(1) <= 2 * steps * theta + 1e-12).all()
    assert x_adv.max() <= 1


def test_one_step_raises_two_pixels_by_theta():
    x = 0.5 * images()
    change = (jsma(net_of(), x, targets(), theta=0.3, gamma=0.25) - x).flatten(1)
    torch.testing.assert_close(change[change != 0], torch.full_like(change[change != 0], 0.3))
    assert set((change != 0).sum(1).tolist()) == {0, 2}


@pytest.mark.parametrize("seed", range(5))
def test_as_published_correct_images_are_untouched_and_accuracy_rises(seed):
    net, x, y = net_of(seed), images(60), targets(60)
    right = net(x).argmax(1) == y
    x_adv = jsma(net, x, published_target(y), theta=0.5, gamma=1.0)
    assert 0 < right.sum() < 60
    assert x_adv[right].equal(x[right])
    assert moved(x_adv[~right], x[~right]).any()
    assert accuracy(net, x_adv, y) > accuracy(net, x, y)


def test_as_published_accuracy_of_a_network_with_batch_norm_never_falls(make_net, batch):
    net, (x, y) = make_net().eval(), batch
    for gamma in (0.0, 0.05, 0.2, 1.0):
        assert accuracy(net, jsma(net, x, published_target(y), gamma=gamma), y) >= accuracy(net, x, y)


def test_on_digits_a_wrong_target_lowers_accuracy_and_the_true_one_raises_it():
    digits = load("digits", data_dir=Path("data"))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(30):
        loss = nn.functional.cross_entropy(net(digits.train.images), digits.train.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = digits.test
    wrong = wrong_target(y, 10, Generator().manual_seed(0))
    clean = accuracy(net, x, y)
    assert 0.8 < clean < 1
    assert accuracy(net, jsma(net, x, wrong, theta=0.5, gamma=0.2), y) < clean - 0.2
    assert accuracy(net, jsma(net, x, published_target(y), theta=0.5, gamma=0.2), y) > clean


def test_the_published_target_is_the_true_label():
    y = targets()
    assert published_target(y).equal(y)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_wrong_target_is_never_the_label_and_each_other_class_alike(classes):
    draws = 2000
    y = torch.arange(classes).repeat_interleave(draws)
    target = wrong_target(y, classes, Generator().manual_seed(0))
    counts = torch.zeros(classes, classes).index_put_((y, target), torch.ones(len(y)), accumulate=True)
    expected = draws / (classes - 1)
    assert (counts.diagonal() == 0).all()
    assert (target.min(), target.max()) == (0, classes - 1)
    others = counts[~torch.eye(classes, dtype=torch.bool)]
    assert ((others - expected).abs() <= 5 * expected**0.5).all()


def test_the_generator_alone_decides_the_wrong_target():
    y, before = targets(100), torch.get_rng_state()
    first = wrong_target(y, CLASSES, Generator().manual_seed(0))
    assert torch.get_rng_state().equal(before)
    assert wrong_target(y, CLASSES, Generator().manual_seed(0)).equal(first)
    assert not wrong_target(y, CLASSES, Generator().manual_seed(1)).equal(first)


@pytest.mark.parametrize("setting", [{"theta": 0.0}, {"theta": -0.1}, {"gamma": -0.1}, {"theta": float("nan")}])
def test_settings_that_make_no_sense_are_refused(setting):
    with pytest.raises(UserError, match="JSMA wants"):
        jsma(net_of(), images(), targets(), **setting)


@pytest.mark.parametrize("pairs", [1, 100, 5000])
@pytest.mark.parametrize("noise", [0.1, 10.0])
def test_the_result_does_not_depend_on_how_many_pairs_are_scored_at_once(pairs, noise, monkeypatch):
    own = torch.randn(10, 50, dtype=torch.double)
    weights = (own + noise * torch.randn(10, 50)).round(decimals=1)  # ties among them
    net = lambda z: z.flatten(1) @ weights.T  # noqa: E731
    x, target = torch.rand(6, 2, 5, 5, dtype=torch.double), torch.arange(6)
    whole = jsma(net, x, target, gamma=0.4)
    monkeypatch.setattr(sys.modules["lib.attacks.jsma"], "PAIRS", pairs)
    assert moved(whole, x).any()
    assert jsma(net, x, target, gamma=0.4).equal(whole)


def test_a_batch_is_its_images_one_by_one():
    net, x, target = net_of(), images(), targets()
    together = jsma(net, x, target, theta=0.3, gamma=1.0)
    alone = [jsma(net, x[[i]], target[[i]], theta=0.3, gamma=1.0) for i in range(len(x))]
    torch.testing.assert_close(together, torch.cat(alone))
    assert jsma(net, x[:0], target[:0]).shape == (0, 2, 2, 2)


def test_an_image_that_reached_its_target_no_longer_changes():
    net, x, target = net_of(), images(60), targets(60)
    short, long = (jsma(net, x, target, theta=0.5, gamma=gamma) for gamma in (0.5, 1.0))
    there = (net(short).argmax(1) == target) & moved(short, x).any(1)
    assert there.any()
    assert long[there].equal(short[there])
    assert moved(long[~there], short[~there]).any()


def test_images_that_stopped_cost_no_further_passes():
    net, x, target, sizes = net_of(), images(60), targets(60), []

    def counted(z):
        sizes.append(len(z))
        return net(z)

    jsma(counted, x, target, theta=0.5, gamma=1.0)
    assert sizes == sorted(sizes, reverse=True)
    assert 60 == sizes[0] > sizes[-1]
    sizes.clear()
    assert jsma(counted, x, net(x).argmax(1), gamma=1.0).equal(x)
    assert sizes == [60]


@pytest.mark.parametrize("value", [None, 7.0])
def test_jsma_leaves_images_and_gradients_alone_and_works_inside_no_grad(value):
    net, x, target = net_of(), images(), targets()
    for p in net.parameters():
        p.grad = None if value is None else torch.full_like(p, value)
    before = x.clone()
    x.requires_grad_()
    with torch.no_grad():
        x_adv = jsma(net, x, target, gamma=1.0)
    assert moved(x_adv, before).any()
    assert x.equal(before)
    assert x.grad is None
    assert not x_adv.requires_grad
    assert all(p.grad is None if value is None else (p.grad == value).all() for p in net.parameters())


def test_jsma_works_on_a_network_whose_parameters_want_no_gradient():
    net, x, target = net_of(), images(), targets()
    expected = jsma(net, x, target, gamma=1.0)
    assert jsma(net.requires_grad_(False), x, target, gamma=1.0).equal(expected)


def test_the_adversarial_image_has_the_images_dtype():
    x = images().float()
    assert jsma(net_of().float(), x, targets(), gamma=1.0).dtype == torch.float32
