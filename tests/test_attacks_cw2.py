import pytest
import torch
from torch import nn

from lib.attacks.cw2 import cw2

WEIGHTS = torch.tensor([[1.0, -0.75], [-1.0, 0.75], [0.2, 0.2]], dtype=torch.double)


def linear(x):
    """Three classes on images of two pixels."""
    return x.flatten(1) @ WEIGHTS.T


def images(n=20):
    x = torch.rand(n, 1, 1, 2, dtype=torch.double)
    return x, linear(x).argmax(1)


def broken(net, x, y):
    return net(x).argmax(1) != y


def reference(net, x, y, c=0.1, confidence=0.01, steps=1000, lr=0.01):
    """The attack spelled out: one image, one class, one comparison at a time (dgad.md 4.2)."""
    w0 = torch.atanh((2 * x - 1) * 0.999999)
    w = w0.clone().requires_grad_()
    adam, best, nearest, previous = torch.optim.Adam([w], lr=lr), x.clone(), [float("inf")] * len(x), float("inf")
    for t in range(steps):
        x_adv = torch.sigmoid(2 * w)
        logits, loss, closer = net(x_adv), 0.0, []
        for i in range(len(x)):
            distance = ((x_adv[i] - torch.sigmoid(2 * w0[i])) ** 2).sum()
            rival = max(logits[i, j] for j in range(logits.shape[1]) if j != y[i])
            loss = loss + distance + c * max(logits[i, y[i]] - rival + confidence, 0 * rival)
            if rival > logits[i, y[i]] + confidence and distance < nearest[i]:
                closer.append((i, distance.item()))
        if t % max(steps // 10, 1) == 0:
            if loss.item() > 0.999999 * previous:
                break
            previous = loss.item()
        for i, distance in closer:
            best[i], nearest[i] = x_adv[i].detach(), distance
        adam.zero_grad()
        loss.backward()
        adam.step()
    return best


def test_cw2_with_its_defaults_equals_the_attack_spelled_out():
    x, y = images(6)
    x_adv = cw2(linear, x, y)
    assert 0 < broken(linear, x_adv, y).sum() < 6
    torch.testing.assert_close(x_adv, reference(linear, x, y))


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_cw2_with_other_settings_equals_the_attack_spelled_out(steps):
    x, y = images(6)
    settings = {"c": 2.0, "confidence": 0.3, "steps": steps, "lr": 0.1}
    torch.testing.assert_close(cw2(linear, x, y, **settings), reference(linear, x, y, **settings))


def test_the_first_step_goes_down_the_gradient_of_the_true_classs_lead():
    x, y = torch.tensor([[[[0.8, 0.5]]]], dtype=torch.double), torch.tensor([0])
    x_adv = cw2(linear, x, y, c=10.0, steps=2, lr=0.3)
    assert broken(linear, x_adv, y).item()
    downhill = -(WEIGHTS[0] - WEIGHTS[2]).sign()  # class 2 is the runner-up here
    expected = (1 + torch.tanh(torch.atanh(2 * x - 1) + 0.3 * downhill)) / 2
    torch.testing.assert_close(x_adv, expected, atol=1e-5, rtol=0)


def test_pixels_of_exactly_0_and_1_move():
    x, y = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([0])
    net = lambda z: z.flatten(1) @ torch.tensor([[-20.0, 0.0], [20.0, 0.0]]) + torch.tensor([15.0, 0.0])  # noqa: E731
    x_adv = cw2(net, x, y, c=10.0)
    assert ((x_adv - x).abs() > 0.01).all()
    assert broken(net, x_adv, y).item()


@pytest.mark.parametrize("shift", [-100.0, 100.0])
def test_the_rival_is_the_best_other_class_also_where_all_logits_are_negative(shift):
    x, y = images()
    shifted = cw2(lambda z: linear(z) + shift, x, y, c=1.0, steps=100)
    assert broken(linear, shifted, y).any()
    torch.testing.assert_close(shifted, cw2(linear, x, y, c=1.0, steps=100))


def test_an_image_that_was_not_broken_comes_back_bit_for_bit():
    x, y = images()
    x_adv = cw2(linear, x, y, c=0.1, steps=100)
    kept = ~broken(linear, x_adv, y)
    assert 0 < kept.sum() < len(y)
    assert x_adv[kept].equal(x[kept])


def test_a_broken_image_is_misclassified_by_the_confidence_and_inside_the_image_range():
    x, y = images()
    x_adv = cw2(linear, x, y, c=5.0, confidence=0.5, steps=200)
    moved = (x_adv != x).flatten(1).any(1)
    logits = linear(x_adv[moved])
    own = logits.gather(1, y[moved, None]).squeeze(1)
    assert moved.any()
    assert (logits.amax(1) > own + 0.5).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_an_image_that_was_misclassified_already_stays_where_it_is():
    x, _ = images()
    worst = linear(x).argmin(1)
    torch.testing.assert_close(cw2(linear, x, worst, steps=50), x, atol=1e-6, rtol=0)


def test_a_larger_constant_breaks_more_images():
    x, y = images()
    counts = [broken(linear, cw2(linear, x, y, c=c, steps=100), y).sum().item() for c in (0.0, 0.1, 0.3, 1.0, 10.0)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == len(y)


def test_the_attack_stops_at_a_tenth_of_its_steps_if_the_loss_does_not_fall():
    calls = []

    def flat(x):
        calls.append(1)
        return 0 * linear(x)

    cw2(flat, *images(2), steps=50)
    assert len(calls) == 6


def test_cw2_leaves_no_gradient_and_works_inside_no_grad():
    net, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(2, 3)).double(), images()
    with torch.no_grad():
        x_adv = cw2(net, x, y, c=10.0, steps=20)
    assert (x_adv != x).any()
    assert not x_adv.requires_grad
    assert all(p.grad is None for p in net.parameters())
