"""Each check fires on a network made to trip exactly that, and none on a network that is what it looks like."""

from functools import partial

import pytest
import torch
from torch import nn

from lib import data
from lib.attacks.pgd import pgd
from lib.evaluate import sanity as checks
from lib.evaluate.sanity import CHECKS, Evidence, Finding, sanity_checks
from lib.methods import METHODS
from lib.models import build
from lib.train import Schedule, Training

EPSILON = 0.12
N = 100


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return data.load("digits", data_dir=folder, download=False, cache_dir=folder)


def trained(digits, method, epochs, seed=0):
    torch.manual_seed(seed)
    net = build("ResNet8-w8", classes=10, channels=1)
    attack = partial(pgd, epsilon=EPSILON, step_size=EPSILON / 4, steps=5)
    Training(net, None, METHODS[method], attack, digits.train, Schedule(epochs, 64), lambda net: 0.0).run()
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def robust(digits):
    return trained(digits, "pgd_at_uniform", epochs=4)


@pytest.fixture(scope="module")
def undefended(digits):
    return trained(digits, "natural", epochs=3, seed=1)


@pytest.fixture(scope="module")
def images(digits):
    return next(digits.test.batches(N))


class Scaled(nn.Module):
    """Logits times 300: softmax saturates, and cross-entropy's gradient is zero."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return 300 * self.net(x)


class Quantised(Scaled):
    """Pixels rounded to sixteen levels: no gradient passes."""

    def forward(self, x):
        return self.net((x * 15).round() / 15)


class Noisy(Scaled):
    """Noise in the forward pass."""

    def forward(self, x):
        return self.net(x + 0.3 * torch.randn_like(x))


class Probabilities(Scaled):
    """Softmax in place of logits."""

    def forward(self, x):
        return self.net(x).softmax(1)


def fired(net, images, unrelated=None):
    return {
        finding.check for finding in sanity_checks(net, *images, epsilon=EPSILON, unrelated=unrelated) if finding.fired
    }


def test_nothing_fires_on_a_robust_network(robust, undefended, images):
    assert fired(robust, images, undefended) == set()


def test_saturated_logits_are_caught_by_every_check_that_compares_attacks(robust, undefended, images):
    assert fired(Scaled(undefended), images, robust) >= {
        "zero gradients",
        "margin beats cross-entropy",
        "unbounded radius",
        "Square beats PGD",
        "a single step is enough",
    }


def test_quantised_pixels_have_no_gradient(undefended, images):
    assert fired(Quantised(undefended), images) >= {"zero gradients", "unbounded radius", "Square beats PGD"}


def test_a_random_forward_is_caught_in_the_act(robust, images):
    assert "two forwards disagree" in fired(Noisy(robust), images)


def test_probabilities_are_told_from_logits(robust, images):
    assert "outputs are probabilities" in fired(Probabilities(robust), images)
    assert "outputs are probabilities" not in fired(robust, images)


def test_a_network_that_another_breaks_more_easily_than_itself_is_caught(robust, undefended, images):
    assert "transfer beats white-box" in fired(Quantised(undefended), images, undefended)


def test_every_check_is_run_but_transfer_only_beside_another_network(robust, images):
    assert len(sanity_checks(robust, *images, epsilon=EPSILON)) == len(CHECKS) - 1 == 10


def test_the_checks_find_the_same_in_batches(robust, undefended, images):
    whole, parts = (
        sanity_checks(robust, *images, epsilon=EPSILON, unrelated=undefended, batch_size=size) for size in (N, 37)
    )
    assert [finding.check for finding in parts] == [finding.check for finding in whole]
    for one, other in zip(whole, parts, strict=True):
        assert abs(one.value - other.value) <= 100 * 2 / N, one  # Square draws anew for every batch


def test_two_forwards_are_compared_beside_the_size_of_the_logits(robust, images):
    class Rounding(Scaled):
        def forward(self, x):
            return self.net(x) * (1000 + 1e-2 * torch.rand(()))

    assert "two forwards disagree" not in fired(Rounding(robust), images)


@pytest.mark.parametrize(("value", "fires"), [(1.0, False), (1.1, True)])
def test_a_finding_fires_above_its_limit(value, fires):
    assert Finding("a check", value, 1.0, "").fired is fires


class Told(Evidence):
    """Evidence whose accuracies are given, for checks that only compare."""

    def __init__(self, count=1000, **accuracies):
        super().__init__(
            lambda x: torch.zeros(len(x), 10), torch.zeros(count, 1, 2, 2), torch.zeros(count), 0.1, None, 0
        )
        vars(self).update(accuracies)


@pytest.mark.parametrize(
    ("check", "evidence", "fires"),
    [
        (checks.not_converged, Told(pgd_20=50.0, pgd_40=48.9), True),
        (checks.not_converged, Told(pgd_20=50.0, pgd_40=49.1), False),
        (checks.single_step_is_enough, Told(fgsm=50.0, pgd_20=50.0), True),
        (checks.single_step_is_enough, Told(fgsm=50.1, pgd_20=50.0), False),
        (checks.single_step_is_enough, Told(fgsm=51.0, pgd_20=50.0), False),
        (checks.single_step_is_enough, Told(fgsm=0.0, pgd_20=0.0), False),
    ],
)
def test_a_comparison_fires_beyond_its_slack(check, evidence, fires):
    assert check(evidence).fired is fires


def test_the_slack_is_a_fifth_of_a_point_and_never_less_than_three_images():
    assert Told(count=10_000).slack == 0.2
    assert Told(count=200).slack == 1.5


def test_silent_success_counts_images_that_were_broken_on_the_way_only():
    """A network that is right in a corner of the ball and at the image, and wrong between."""

    def net(x):
        moved = (x - 0.5).abs().flatten(1).amax(1)
        wrong = (moved > 0.02) & (moved < 0.09)
        slope = x.flatten(1).sum(1)
        return torch.stack([slope * 0 + (~wrong).float() - slope * 1e-3, wrong.float() + slope * 1e-3], 1)

    x, y = torch.full((50, 1, 2, 2), 0.5), torch.zeros(50, dtype=torch.long)
    finding = checks.silent_success(Evidence(net, x, y, 0.1, None, 0))
    assert finding.value > 50


class OnlyAsGiven(nn.Module):
    """Class 0 for the very images it was given, 1 for any other."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def forward(self, x):
        same = (x == self.x[: len(x)]).flatten(1).all(1)
        return torch.stack([same.float(), 1 - same.float()], 1)


@pytest.mark.parametrize(("pgd_20", "fires"), [(100.0, True), (0.0, False)])
def test_noise_that_breaks_what_pgd_does_not_is_caught(pgd_20, fires):
    x = torch.rand(40, 1, 2, 2)
    evidence = Evidence(OnlyAsGiven(x), x, torch.zeros(40, dtype=torch.long), 0.1, None, 0)
    vars(evidence)["pgd_20"] = pgd_20
    assert checks.noise_beats_pgd(evidence).fired is fires


def test_exactly_as_many_images_as_the_slack_is_no_finding_whatever_the_rounding():
    for n in range(50, 600):
        limit = Told(count=n).slack
        images = int(limit * n / 100 + 1e-9)
        assert not Finding("a check", 100 * images / n, limit, "").fired
        assert Finding("a check", 100 * (images + 1) / n, limit, "").fired
