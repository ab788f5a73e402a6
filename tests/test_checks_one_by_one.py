"""A network per check with exactly that fault, which makes exactly that check fire.

All images are grey squares of class 0 that differ in their level, which the networks read without a gradient. With
d = (x' - 0.5) / epsilon, images of low level have the sound logits (b - mean(w d), 0, -20, ...), and some of them break
within the radius. The others have a fault: a function of d.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lib.evaluate.sanity import CHECKS, sanity_checks

EPSILON, N, SIDE, CLASSES = 0.02, 120, 16, 10
LEVELS = torch.arange(1, 10) / 10  # more than two radii apart
DRAWN = torch.Generator().manual_seed(0)
W, V = (2.0 * torch.randint(2, (2, SIDE, SIDE), generator=DRAWN) - 1).unbind()


def along(d, direction=W):
    """mean(w d), (N,): in the ball 1 at one corner only, and near 0 at random points."""
    return (d * direction).flatten(1).mean(1)


def inside(d):
    """Whether d lies in the ball, (N,)."""
    return d.flatten(1).abs().amax(1) <= 1.01


def interior(d):
    """Whether d is far from every corner of the ball, (N,): Square sees only corners."""
    return d.flatten(1).abs().mean(1) < 0.9


def sound(d, bias=1.0):
    return two(bias - along(d))


def two(margin):
    """Logits of a margin between class 0 and the next; the others are far off."""
    return torch.stack([margin, 0 * margin, *[0 * margin - 20] * (CLASSES - 2)], 1)


def wrong_where(workspace, margin):
    """The margin, but -1 where `place` says so; its gradient is the same everywhere."""
    return two(torch.where(workspace, margin - margin.detach() - 1, margin))


def flat_in_the_ball(d):
    return torch.where(inside(d)[:, None], two(torch.ones(len(d))), sound(d))


def decoys(d):
    """Cross-entropy follows eight classes that get nowhere in the ball, the margin the one that wins at its corner."""
    u = along(d)
    return torch.stack([0 * u, 2 * u - 1.9, *[-2.0 - u] * (CLASSES - 2)], 1)


def right_far_away(d):
    return torch.where(inside(d)[:, None], sound(d), two(5 - 0.01 * along(d)))


def holes_in_the_interior(d):
    """Wrong at one random point of two hundred; the gradient leads elsewhere."""
    spread = (3 * SIDE * SIDE) ** -0.5
    return wrong_where((along(d) > 2.5 * spread) & interior(d), 1 + 0.5 * along(d))


def wrong_at_stripes(d):
    stripes = d.sign().mean(1).abs().amin(1) == 1
    return wrong_where(stripes & ~interior(d) & inside(d), 1 + 0.5 * along(d))


def wrong_at_the_others_corner(d):
    return wrong_where(along(d, V) > 0.95, 1 + 0.5 * along(d))


def a_gradient_that_leads_nowhere(d):
    return two(1 + 0.5 * along(d))


def one_pixel_at_a_time(d):
    """Wrong where ten pixels are all near 0.5; only the first that is not has a gradient, so one moves at a time."""
    pixels = d.flatten(1)[:, :10]
    away = (pixels - 0.5).abs().detach() > 0.13
    first = away & (away.cumsum(1) == 1)
    margin = away.sum(1) / 10 + (first * (pixels - 0.5).abs()).sum(1) / 100 - 0.01
    return torch.where(inside(d)[:, None], two(margin), sound(d))


def a_hole_on_the_way(d):
    u = -along(d)
    return wrong_where((u > 0.3) & (u < 0.6) & interior(d), 1.5 + along(d))


@dataclass(eq=False)
class Faulty(nn.Module):
    """The `share` of the levels that are highest has the fault; `answer` is taken of all logits."""

    fault: object = sound
    answer: object = staticmethod(lambda logits: logits)
    share: float = 0.5

    def __post_init__(self):
        super().__init__()

    def forward(self, x):
        level = x[:, 1].detach().flatten(1).mean(1)
        d = (x[:, 0] - 0.5) / EPSILON
        healthy = sound(d, 2 * level)
        return self.answer(torch.where((level > 1 - self.share)[:, None], self.fault(d), healthy))


FAULTS = {
    "zero gradients": Faulty(flat_in_the_ball),
    "margin beats cross-entropy": Faulty(decoys),
    "unbounded radius": Faulty(right_far_away),
    "noise beats PGD": Faulty(holes_in_the_interior, share=0.75),
    "Square beats PGD": Faulty(wrong_at_stripes),
    "transfer beats white-box": Faulty(wrong_at_the_others_corner, share=0.75),
    "a single step is enough": Faulty(a_gradient_that_leads_nowhere, share=1),
    "not converged": Faulty(one_pixel_at_a_time),
    "two forwards disagree": Faulty(answer=lambda logits: logits + 1e-2 * torch.rand(len(logits), 1)),
    "silent success": Faulty(a_hole_on_the_way),
    "outputs are probabilities": Faulty(answer=lambda logits: logits.softmax(1)),
}


class Other(nn.Module):
    """A sound network along another direction."""

    def forward(self, x):
        return two(0.5 - along((x[:, 0] - 0.5) / EPSILON, V))


def findings(net):
    levels = LEVELS[torch.arange(N) % len(LEVELS)]
    x = torch.stack([torch.full((N,), 0.5), levels], 1)[:, :, None, None].expand(N, 2, SIDE, SIDE).contiguous()
    return sanity_checks(net, x, torch.zeros(N, dtype=torch.long), epsilon=EPSILON, unrelated=Other())


def test_every_check_has_its_fault():
    assert len(FAULTS) == len(CHECKS) == len({finding.check for finding in findings(Faulty())} & set(FAULTS))


def test_a_sound_network_trips_none():
    assert [finding for finding in findings(Faulty()) if finding.fired] == []


@pytest.mark.parametrize("check", FAULTS)
def test_a_fault_trips_its_check_and_no_other(check):
    assert [finding.check for finding in findings(FAULTS[check]) if finding.fired] == [check]
