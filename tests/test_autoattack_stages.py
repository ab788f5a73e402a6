from dataclasses import replace

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack_targeted
from pyautoattack.fab_projections import projection_linf
from test_autoattack import EPSILON, attack, labelled, right, small_net, theirs

from lib.attacks import apgd, autoattack
from lib.attacks.autoattack import OWN, STAGES
from lib.attacks.batches import Batch, Setting
from lib.attacks.fab import to_hyperplane
from lib.attacks.reference import REFERENCE

RADII = (0.2, 0.05, 0.07, 0.1)  # where every stage breaks some images of `case(seed)` and leaves some
SHORT = Setting(EPSILON, seed=0, targets=9, width=12, steps=15, queries=300)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    short = {"steps": SHORT.steps, "queries": SHORT.queries}
    monkeypatch.setattr(autoattack, "Setting", lambda *given: replace(Setting(*given), **short))


def case(seed=0, classes=10, n=16):
    torch.manual_seed(seed)
    net = small_net(classes)
    x, y = labelled(net, n, wrong=())
    return net, Batch(x, y)


def counting(net):
    """`net`, and the list of its batches' sizes."""
    sizes = []

    def counted(x):
        sizes.append(len(x))
        return net(x)

    return counted, sizes


def broken(net, batch, stage, setting=SHORT):
    x_adv = stage(net, batch, setting)
    assert (x_adv - batch.x).abs().max() <= setting.epsilon + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    wrong = ~right(net, x_adv, batch.y)
    assert wrong.equal((x_adv != batch.x).flatten(1).any(1))  # what is not broken is handed back as it came
    return wrong


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_breaks_the_images_that_the_authors_break_and_no_other(name, seed):
    net, batch = case(seed)
    setting = replace(SHORT, seed=seed, epsilon=RADII[seed])
    ours, authors = (broken(net, batch, stages[name], setting) for stages in (OWN, REFERENCE))
    assert ours.equal(authors)
    assert authors.any()
    assert not authors.all()


@pytest.mark.parametrize(("seed", "classes", "epsilon"), [(0, 10, 0.2), (3, 10, 0.1), (2, 4, 0.2)])
def test_a_whole_evaluation_has_the_authors_flags_after_every_stage(seed, classes, epsilon):
    torch.manual_seed(seed)
    net = small_net(classes)
    x, y = labelled(net)
    ours, authors = (run(net, x, y, seed=seed, epsilon=epsilon).robust for run in (attack, theirs))
    assert ours.keys() == authors.keys()
    assert all(ours[stage].equal(flags) for stage, flags in authors.items())
    assert len({int(flags.sum()) for flags in authors.values()}) > 2


def test_the_standard_lengths_have_the_authors_flags_too(monkeypatch):
    net, (x, y) = case(5, n=5)
    monkeypatch.setattr(autoattack, "Setting", Setting)
    ours, authors = (run(net, x, y, epsilon=0.05) for run in (attack, theirs))
    assert all(ours.robust[stage].equal(flags) for stage, flags in authors.robust.items())
    assert 0 < authors.robust["square"].sum() < 5


# --- Auto-PGD ------------------------------------------------------------------------------------------------------


def test_apgd_reconsiders_its_steps_at_the_papers_iterations():
    assert apgd.checkpoints(100) == {21: 22, 40: 19, 56: 16, 69: 13, 79: 10, 86: 7, 92: 6, 98: 6}


def test_the_targeted_ratio_is_the_authors():
    logits, y, target = torch.randn(20, 10), torch.randint(10, (20,)), torch.randint(10, (20,))
    authors = APGDAttack_targeted(None, eps=0.1)
    authors.y_target = target
    assert apgd.dlr_targeted(logits, y, target).equal(authors.dlr_loss_targeted(logits, y))


@pytest.mark.parametrize("width", [1, 40, 1000])
def test_targets_that_are_tried_at_once_break_what_targets_in_turn_break(width):
    net, batch = case(1)
    setting = replace(SHORT, width=width, epsilon=EPSILON / 2)
    assert broken(net, batch, apgd.apgd_t, setting).equal(broken(net, batch, REFERENCE["apgd-t"], setting))


def test_asking_seldom_who_is_broken_changes_no_flag(monkeypatch):
    net, batch = case(2)
    often = [broken(net, batch, OWN[name]) for name in ("apgd-ce", "apgd-t")]
    monkeypatch.setattr(apgd, "EVERY", {})
    assert all(broken(net, batch, OWN[n]).equal(flags) for n, flags in zip(("apgd-ce", "apgd-t"), often, strict=True))


def test_a_broken_image_is_not_asked_again():
    net, batch = case(0)
    counted, sizes = counting(net)
    left = len(batch.x) - int(broken(net, batch, apgd.apgd_ce).sum())
    apgd.apgd_ce(counted, batch, SHORT)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == left


# --- FAB -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [0.05, 1.0, 30.0])
def test_the_projection_onto_a_hyperplane_in_the_box_is_the_authors(far):
    t, w, b = torch.rand(50, 30), torch.randn(50, 30), far * torch.randn(50)
    t[:, :6], t[:, 6:9], w[:, 9:12], w[0] = 0, 1, 0, 1.0
    torch.testing.assert_close(to_hyperplane(t, w, b), projection_linf(t, w, b))


def test_no_shorter_move_reaches_the_hyperplane():
    t, w = torch.rand(20, 12), torch.randn(20, 12)
    b = (w * torch.rand(20, 12)).sum(1)  # within reach
    d = to_hyperplane(t, w, b)
    torch.testing.assert_close((w * (t + d)).sum(1), b)
    sign = torch.where((w * t).sum(1) < b, 1.0, -1.0)[:, None]
    shorter = 0.99 * d.abs().amax(1, keepdim=True)
    furthest = (w * (t + sign * w.sign() * shorter).clamp(0, 1)).sum(1)
    assert (sign[:, 0] * (b - furthest) > 0).all()


# --- Square --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 16, 500])
def test_square_makes_the_authors_images_pixel_by_pixel(width):
    net, batch = case(1)
    setting = replace(SHORT, width=width)
    assert OWN["square"](net, batch, setting).equal(REFERENCE["square"](net, batch, setting))


def test_square_does_not_ask_what_it_knows():
    net, batch = case(3)
    setting, asked = replace(SHORT, queries=1500, epsilon=0.01), {}
    for name, stages in (("own", OWN), ("authors", REFERENCE)):
        counted, sizes = counting(net)
        stages["square"](counted, batch, setting)
        asked[name] = sum(sizes)
    assert 5 * asked["own"] < asked["authors"]
