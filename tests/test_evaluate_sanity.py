"""A network per check with exactly that fault makes exactly that check fire; a sound one trips none.

All images are grey squares of class 0 that differ in their level, which the networks read without a gradient. With
d = (x' - 0.5) / epsilon, images of low level have the sound logits (b - mean(w d), 0, -20, ...), and some of them break
within the radius. The others have a fault: a function of d.
"""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from wrapped import After

from lib import data
from lib.attacks.pgd import pgd
from lib.evaluate import sanity
from lib.evaluate.sanity import CHECKS, FIRED, Evidence, Finding, sanity_checks, strip, summary
from lib.methods import METHODS
from lib.models import build
from lib.train import Schedule, build_training

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


def wrong_where(place, margin):
    """The margin, but -1 where `place` says so; its gradient is the same everywhere."""
    return two(torch.where(place, margin - margin.detach() - 1, margin))


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
    "at chance": Faulty(partial(sound, bias=-3.0), share=1),
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


def findings(net, **chosen):
    levels = LEVELS[torch.arange(N) % len(LEVELS)]
    x = torch.stack([torch.full((N,), 0.5), levels], 1)[:, :, None, None].expand(N, 2, SIDE, SIDE).contiguous()
    return sanity_checks(net, x, torch.zeros(N, dtype=torch.long), epsilon=EPSILON, **{"unrelated": Other()} | chosen)


def fired(net, **chosen):
    return [finding.check for finding in findings(net, **chosen) if finding.fired]


def test_every_check_has_its_fault_and_a_sound_network_trips_none():
    made = findings(Faulty())
    assert {finding.check for finding in made} == set(FAULTS)
    assert len(made) == len(CHECKS) == len(FAULTS)
    assert not any(finding.fired for finding in made)


@pytest.mark.parametrize("check", FAULTS)
def test_a_fault_trips_its_check_and_no_other(check):
    assert fired(FAULTS[check]) == [check]


def test_the_transfer_check_alone_needs_another_network():
    assert {*FAULTS} - {finding.check for finding in findings(Faulty(), unrelated=None)} == {"transfer beats white-box"}


def test_the_checks_find_the_same_in_batches():
    for one, other in zip(findings(Faulty()), findings(Faulty(), batch_size=37), strict=True):
        assert one.check == other.check
        assert abs(one.value - other.value) <= 100 * 3 / N, one  # Square draws anew for every batch


# --- limits -------------------------------------------------------------------------------------------------------


class Given(Evidence):
    """Evidence whose accuracies are given, for checks that only compare."""

    def __init__(self, count=1000, net=lambda x: torch.zeros(len(x), 10), **accuracies):
        super().__init__(net, torch.zeros(count, 1, 2, 2), torch.zeros(count, dtype=torch.long), 0.1)
        vars(self).update(accuracies)


def right_after(twenty, forty):
    """How many of a thousand images are right up to step 20, and then."""
    return torch.arange(1000) < torch.tensor([twenty] * 21 + [forty] * 20)[:, None]


def right_of(count):
    """Logits (100, 10) of a hundred images of class 0, of which `count` are right."""
    return F.one_hot((torch.arange(100) >= count).long(), 10).float()


@pytest.mark.parametrize(
    ("check", "evidence", "fires"),
    [
        (
            sanity.at_chance,
            Given(count=100, logits=right_of(18)),
            True,
        ),  # of ten classes: at most 10 + 3 * 3 is guessing
        (sanity.at_chance, Given(count=100, logits=right_of(19)), False),
        (sanity.not_converged, Given(right_on_the_way=right_after(500, 489)), True),
        (sanity.not_converged, Given(right_on_the_way=right_after(500, 491)), False),
        (sanity.single_step_is_enough, Given(fgsm=50.0, pgd_20=50.0), True),
        (sanity.single_step_is_enough, Given(fgsm=50.1, pgd_20=50.0), False),
        (sanity.single_step_is_enough, Given(fgsm=51.0, pgd_20=50.0), False),
        (sanity.single_step_is_enough, Given(fgsm=0.0, pgd_20=0.0), False),
    ],
)
def test_a_comparison_fires_beyond_its_slack(check, evidence, fires):
    assert check(evidence).fired is fires


def test_the_slack_is_a_fifth_of_a_point_and_never_less_than_three_images():
    assert Given(count=10_000).slack == 0.2
    assert Given(count=200).slack == 1.5


def test_exactly_as_many_images_as_the_slack_is_no_finding_whatever_the_rounding():
    for n in range(50, 600):
        limit = Given(count=n).slack
        images = int(limit * n / 100 + 1e-9)
        assert not Finding("a check", 100 * images / n, limit, "").fired
        assert Finding("a check", 100 * (images + 1) / n, limit, "").fired


def test_two_forwards_are_compared_beside_the_size_of_the_logits():
    def rounding(x):
        return torch.ones(len(x), 10) * (1000 + 1e-2 * torch.rand(()))

    assert not sanity.random_forward(Given(net=rounding)).fired
    assert sanity.random_forward(Given(net=lambda x: rounding(x) - 1000)).fired


# --- findings in words --------------------------------------------------------------------------------------------


def test_what_fired_is_coloured_in_the_strip_and_described_with_its_networks():
    bad, good = Finding("a <check>", 2.0, 1.0, "% of images"), Finding("another", 0.0, 1.0, "points")
    made = {"one": [bad, good], "other": [good]}
    assert summary(made, {"other": ["it mends"]}) == [
        "a <check> (% of images; limit 1): one 2.",
        "other: it mends.",
    ]
    html = strip(made, {})
    assert html.count(FIRED) == 1
    assert html.count("–") == 1  # the check that the other network lacks
    assert "a &lt;check&gt;" in html
    assert summary({"one": [good]}, {}) == ["No sanity check fired on the network."]
    assert summary({}, {}) == ["No sanity checks were made."]


# --- trained networks ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trained_networks_trip_none_until_their_logits_are_scaled_or_their_pixels_rounded(tmp_path):
    digits = data.load("digits", data_dir=tmp_path, download=False, cache_dir=tmp_path)
    robust = trained(digits, "pgd_at_uniform", epochs=4, seed=0)
    undefended = trained(digits, "natural", epochs=3, seed=1)
    x, y = next(digits.test.batches(100))
    scaled, rounded = After(undefended, lambda logits: 300 * logits), nn.Sequential(Quantised(), undefended)
    made = {
        net: {f.check for f in sanity_checks(net, x, y, epsilon=0.12, unrelated=other) if f.fired}
        for net, other in ((robust, undefended), (scaled, robust), (rounded, undefended))
    }
    assert made[robust] == set()
    blind = {"zero gradients", "unbounded radius", "Square beats PGD"}
    assert made[scaled] >= blind | {"margin beats cross-entropy", "a single step is enough"}
    assert made[rounded] >= blind | {"transfer beats white-box"}


class Quantised(nn.Module):
    """Pixels rounded to sixteen levels: no gradient passes."""

    def forward(self, x):
        return (x * 15).round() / 15


def trained(digits, method, epochs, seed):
    torch.manual_seed(seed)
    net = build("ResNet8-w8", classes=10, channels=1)
    attack = partial(pgd, epsilon=0.12, step_size=0.03, steps=5)
    build_training(net, None, METHODS[method], attack, digits.train, Schedule(epochs, 64), lambda net: 0.0).run()
    return net.eval().requires_grad_(False)
