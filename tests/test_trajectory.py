import pytest
import torch
from torch import Generator

from lib.attacks.pgd import PerImage, pgd
from lib.attacks.stopping import UntilWrong
from lib.attacks.trajectory import snapshots
from lib.losses import cross_entropy, margin

BALL = {"epsilon": 0.1, "step_size": 0.02}
AT = (1, 3, 6)


def plain(net, x, y, loss, steps, freeze, batch_size):
    """One pgd per batch, as a column of its own computes it."""
    generator, made = Generator().manual_seed(3), []
    for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        watch = UntilWrong(images, labels, 0.1) if freeze else None
        heard = watch.listen(net) if watch else net
        objective = PerImage(lambda z, t, heard=heard: loss(heard(z), t), (labels,))
        made.append(pgd(objective, images, **BALL, steps=steps, generator=generator, rule=watch))
    return torch.cat(made)


@pytest.fixture
def case(make_net):
    net = make_net()
    for _ in range(3):
        net(torch.rand(16, 3, 4, 4))
    net.eval().requires_grad_(False)
    x = torch.rand(23, 3, 4, 4)
    y = net(x).argmax(1)
    y[::4] = (y[::4] + 1) % 10  # some are wrong from the start
    return net, x, y


@pytest.mark.parametrize("batch_size", [4, 23, 50])
@pytest.mark.parametrize("freeze", [False, True], ids=["last", "frozen"])
@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_one_run_holds_what_a_run_per_number_of_steps_finds(case, loss, freeze, batch_size):
    net, x, y = case
    generator = Generator().manual_seed(3)
    found = snapshots(net, x, y, loss, **BALL, at=AT, freeze=freeze, batch_size=batch_size, generator=generator)
    for steps in AT:
        expected = plain(net, x, y, loss, steps, freeze, batch_size)
        torch.testing.assert_close(found[steps], expected, rtol=0, atol=1e-6)
        assert net(found[steps]).argmax(1).equal(net(expected).argmax(1))


def test_frozen_images_make_room_for_the_next_ones(case):
    net, x, y = case
    seen = []

    def counted(z):
        seen.append(len(z))
        return net(z)

    generator = Generator().manual_seed(3)
    snapshots(counted, x, y, cross_entropy, **BALL, at=AT, freeze=True, batch_size=4, generator=generator)
    assert sum(seen) < 6 * len(x)
    assert max(seen) == 4
    tail = next(i for i, size in enumerate(seen) if size < 4)
    assert all(size < 4 for size in seen[tail:])


def test_the_longest_run_is_all_that_is_paid_for(case):
    net, x, y = case
    seen = []

    def counted(z):
        seen.append(len(z))
        return net(z)

    generator = Generator().manual_seed(3)
    snapshots(counted, x, y, cross_entropy, **BALL, at=AT, freeze=False, batch_size=23, generator=generator)
    assert seen == [23] * 6
