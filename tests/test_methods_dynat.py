from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import yaml
from cases import (
    assert_equal_with_gradients,
    divergence,
    label_loss,
    loss_of,
    make_case,
    make_training,
    moved_by,
    pgd_by_hand,
    terms_of,
)

from lib.attacks.pgd import pgd
from lib.data import Split
from lib.experiment.parameters import PARAMS
from lib.losses import smoothed_target
from lib.methods import METHODS, ce_label, guides_answer
from lib.methods.reweighting import margin_weight
from lib.train import Schedule, TrainingExtras, build_training
from lib.train.weights import AWP

INNER = [name for name, method in METHODS.items() if method.attack_label is guides_answer]
TEN = 10  # the attack's steps in DYNAT's code
AWP_ROW = AWP(0.005, warmup=0.09, method="trades", weights=(("trade_off", 6.0),))  # on from epoch 10 of 100


# --- the loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "alpha"), [(1.0, 0.0), (1.0, 1.0), (0.2, 1.0), (0.2, 0.0)])
def test_dynats_loss_is_the_guides_ce_plus_beta_the_targets_plus_alpha_the_divergence(beta, alpha):
    case = make_case()
    ours = loss_of("dynat", case, target_weight=beta, trade_off=alpha)
    dynamic = beta * label_loss(case.s_adv, case.g.argmax(1))
    trades = alpha * divergence(case.s.softmax(1), case.s_adv.softmax(1))
    theirs = (label_loss(case.g, case.y) + dynamic + trades).mean()
    assert_equal_with_gradients(ours, theirs, (case.s, case.s_adv, case.g))


def test_no_gradient_crosses_between_target_and_guide():
    case = make_case()
    moved = moved_by(case, terms_of("dynat", case, trade_off=1.0))
    assert moved == {"guide": {"g"}, "adv": {"s_adv"}, "trades": {"s", "s_adv"}}


@pytest.mark.parametrize("name", ["dynat", "dynat_inner_gairat", "dynat_mail_inner"])
def test_the_targets_term_knows_the_guides_answer_and_not_the_true_label(name):
    case = make_case()
    first = terms_of(name, case)
    case.y = (case.y + 1) % 5
    second = terms_of(name, case)
    torch.testing.assert_close(first["adv"], second["adv"])
    assert not first["guide"].isclose(second["guide"]).any()


@pytest.mark.parametrize("share", [0.8, 0.5, 1.0])
def test_the_smoothed_dynamic_label_has_its_share_for_the_guides_answer_and_the_rest_for_the_others(share):
    case = make_case()
    adv = terms_of("dynat_inner_gairat", case, progress=0.0, true_share=share)["adv"]
    log_p = case.s_adv.log_softmax(1)
    own = log_p[range(6), case.g.argmax(1)]
    torch.testing.assert_close(adv, -(share * own + (1 - share) / 4 * (log_p.sum(1) - own)))


def test_smoothing_of_0_2_leaves_0_8_or_where_all_ten_classes_share_it_0_82():
    shared = 0.8 * torch.eye(10)[[3]] + 0.2 / 10
    torch.testing.assert_close(smoothed_target(torch.tensor([3]), 10, 0.82), shared)
    assert METHODS["dynat_inner_gairat"].weights["true_share"] == 0.8
    assert METHODS["gairat_smoothed"].weights["true_share"] == 0.8
    table = yaml.safe_load((PARAMS / "tables" / "table3_dynat.yaml").read_text())
    assert [one.get("weights") for one in table["more_rows"]] == [None, {"true_share": 0.82}]


# --- the attack ---------------------------------------------------------------------------------------------------


def forwards_of(net):
    """A list that grows by one (mode, images) per forward of the network."""
    seen = []
    net[0].register_forward_hook(lambda module, inputs, output: seen.append((net.training, inputs[0])))
    return seen


def statistics(net):
    return net[1].running_mean.clone(), net[1].running_var.clone()


def after_forwards(net, *batches):
    """The statistics of a copy that has seen these batches in train mode."""
    copy = deepcopy(net).train()
    for x in batches:
        copy(x)
    return statistics(copy)


@pytest.mark.parametrize("name", INNER)
def test_inners_attack_raises_the_ce_of_what_the_guide_answers_with_batch_statistics(name, make_net, batch):
    (x, y), student, guide = batch, make_net(), make_net()
    with torch.no_grad():
        guide[1].running_mean.add_(2 * torch.randn(4))  # so that in eval mode it would answer otherwise
        label, otherwise = deepcopy(guide).train()(x).argmax(1), deepcopy(guide).eval()(x).argmax(1)
    assert not label.equal(otherwise)
    assert not label.equal(y)
    training = make_training(name, student, None, x, y, guide)
    x_adv, _ = training.craft(x, y)
    net, generator = deepcopy(student).eval(), torch.Generator().manual_seed(0)
    start = METHODS[name].start(x, torch.tensor(0.05), generator)
    torch.testing.assert_close(x_adv, pgd_by_hand(lambda z: label_loss(net(z), label), x, start))


def test_attack_and_loss_of_a_step_use_the_same_labels(make_net, batch):
    given = {}

    def objective(nets, x, y):
        given["attack"] = y
        return ce_label(nets, x, y)

    def loss(nets, x, x_adv, y, **weights):
        given["loss"], given["true"] = nets.guide(x).argmax(1), y
        return {"adv": nets.student(x_adv).sum(1)}

    method = replace(METHODS["dynat_inner"], objective=objective, loss=loss)
    train_with(method, make_net(), make_net(), batch).train_step(*batch)
    assert given["attack"].equal(given["loss"])
    assert given["true"].equal(batch[1])


def train_with(method, student, guide, batch, steps=3, **extras):
    attack, (x, y) = partial(pgd, epsilon=0.05, step_size=0.02, steps=steps), batch
    schedule, extras = Schedule(100, len(y), milestones=(75, 90)), TrainingExtras(guide, **extras)
    return build_training(student, None, method, attack, Split(x, y), schedule, lambda net: 0.0, extras=extras)


@pytest.mark.parametrize("name", [name for name in METHODS if name.startswith("dynat")])
def test_a_step_forwards_the_guide_once_for_the_loss_and_inner_once_more_for_the_attack(name, make_net, batch):
    guide = make_net()
    training = make_training(name, make_net(), None, *batch, guide, steps=TEN)
    seen = forwards_of(guide)
    training.train_step(*batch)
    assert [(in_training, x.equal(batch[0])) for in_training, x in seen] == [(True, True)] * (1 + (name in INNER))


@pytest.mark.parametrize("name", [name for name in METHODS if name.startswith("dynat")])
def test_the_guides_statistics_move_as_in_the_code_1_or_11_times_a_step_and_in_awps_2_or_12(name, make_net, batch):
    (x, y), guide = batch, make_net()
    times = {"dynat": 1, "dynat_inner": 11, "dynat_awp": 2, "dynat_inner_awp": 12}
    count = times.get(name, 11 if name in INNER else 1)
    expected = after_forwards(guide, *[x] * count)
    training = make_training(name, make_net(), None, x, y, guide, steps=TEN)
    before = guide[0].weight.detach().clone()
    training.train_step(x, y)
    torch.testing.assert_close(statistics(guide), expected)
    assert not guide[0].weight.equal(before)
    assert {module.momentum for module in guide.modules() if hasattr(module, "momentum")} == {0.1}


def test_the_targets_statistics_see_the_adversarial_images_and_then_the_clean_ones(make_net, batch):
    (x, y), student = batch, make_net()
    training = make_training("dynat", student, None, x, y, make_net())
    x_adv, _ = training.craft(x, y)
    training.generator.manual_seed(0)
    expected, otherwise = after_forwards(student, x_adv, x), after_forwards(student, x, x_adv)
    training.train_step(x, y)
    torch.testing.assert_close(statistics(student), expected)
    assert not student[1].running_mean.allclose(otherwise[0])


# --- with AWP (dynat_d2r.md 1.4) ----------------------------------------------------------------------------------


def awp_training(name, make_net, batch, **changes):
    method = replace(METHODS[name], **changes)
    return train_with(method, make_net(), make_net(), batch, awp=AWP_ROW, awp_method=METHODS["trades"])


@pytest.mark.parametrize("name", ["dynat", "dynat_inner"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_step_with_awp_is_that_of_the_code(name, alpha, make_net, batch):
    (x, y), x_adv = batch, (batch[0] + 0.04).clamp(0, 1)
    training = awp_training(name, make_net, batch, objective=ce_label)
    training.weights |= {"trade_off": alpha, "target_weight": 0.2}
    training.attack, training.step = (lambda objective, x, **settings: x_adv), 50
    training.attack.keywords = {"steps": TEN}
    student, guide = (deepcopy(net).train() for net in (training.student, training.guide))

    proxy = deepcopy(student)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    clean, adv = proxy(x), proxy(x_adv)
    kl = F.kl_div(F.log_softmax(adv, 1), F.softmax(clean, 1), reduction="batchmean")
    (-(F.cross_entropy(clean, y) + 6 * kl)).backward()
    optimizer.step()
    added = {}
    for (key, w), moved in zip(student.named_parameters(), proxy.parameters(), strict=True):
        if "weight" in key and w.dim() > 1:
            d = moved.detach() - w.detach()
            added[key] = 0.005 * w.detach().norm() / (d.norm() + 1e-20) * d
            w.data += added[key]
    optimizer = torch.optim.SGD([*student.parameters(), *guide.parameters()], 0.1, 0.9, weight_decay=5e-4)
    adv, clean, answer = student(x_adv), student(x), guide(x)
    kl = F.kl_div(F.log_softmax(adv, 1), F.softmax(clean, 1), reduction="batchmean")
    (F.cross_entropy(answer, y) + 0.2 * F.cross_entropy(adv, answer.argmax(1)) + alpha * kl).backward()
    optimizer.step()
    for key, w in student.named_parameters():
        w.data -= added.get(key, 0)

    training.train_step(x, y)
    assert len(added) == 2
    torch.testing.assert_close(dict(training.student.named_parameters()), dict(student.named_parameters()))
    torch.testing.assert_close(dict(training.guide.named_parameters()), dict(guide.named_parameters()))
    torch.testing.assert_close(statistics(training.student), statistics(student))


def test_awp_comes_after_the_attack_moves_the_target_alone_and_is_gone_after_the_step(make_net, batch):
    seen = {}

    def weights():
        return [p.detach().clone() for net in (training.student, training.guide) for p in net.parameters()]

    def objective(nets, x, y):
        seen["attack"] = weights()
        return ce_label(nets, x, y)

    def loss(nets, x, x_adv, y, **given):
        seen["loss"] = weights()
        return {"adv": 0 * nets.student(x_adv).sum(1)}

    training = awp_training("dynat", make_net, batch, objective=objective, loss=loss)
    training.optimizer.param_groups[0]["weight_decay"], training.step = 0, 50
    before = weights()
    training.train_step(*batch)
    assert all(a.equal(b) for a, b in zip(before, seen["attack"], strict=True))
    moved = [not a.equal(b) for a, b in zip(before, seen["loss"], strict=True)]
    assert moved == [p.dim() > 1 for p in training.student.parameters()] + [False] * 6
    torch.testing.assert_close(weights(), before)
    relative = (seen["loss"][0] - before[0]).norm() / before[0].norm()
    assert relative.item() == pytest.approx(0.005, rel=1e-3)


@pytest.mark.parametrize("batches", [1, 3, 391])
def test_awp_begins_with_the_first_batch_of_epoch_10_of_100(batches, make_net, batch):
    perturbed = []

    def loss(nets, x, x_adv, y, **weights):
        perturbed.append(not training.student[0].weight.equal(before))
        return METHODS["dynat"].loss(nets, x, x_adv, y, **weights)

    training = awp_training("dynat", make_net, batch, loss=loss)
    training.total = 100 * batches
    for training.step in (9 * batches - 1, 9 * batches):
        before = training.student[0].weight.detach().clone()
        training.train_step(*batch)
    assert perturbed == [False, True]


# --- with GAIRAT and MAIL -----------------------------------------------------------------------------------------


def test_gairats_kappa_counts_the_iterates_that_the_guide_would_call_right(make_net, batch):
    given = {}

    def spy(nets, x, x_adv, y, *, kappa, steps_seen, **weights):
        given.update(kappa=kappa, steps_seen=steps_seen)
        return {"adv": nets.student(x_adv).sum(1)}

    (x, _), student, guide = batch, make_net(), make_net()
    with torch.no_grad():
        labels = guide(x).argmax(1)
        student[4].weight.zero_()
        student[4].bias.zero_()
        student[4].bias[labels[0]] = (
            1.0  # it gives every image, and whatever becomes of it, what the guide gives the first
        )
    right = labels == labels[0]
    assert 0 < right.sum() < 6
    y = (labels + 1) % 10
    method = replace(METHODS["dynat_inner_gairat"], loss=spy)
    train_with(method, student, guide, (x, y)).train_step(x, y)
    assert given["kappa"].tolist() == [3 * one for one in right.tolist()]
    assert given["steps_seen"].tolist() == [3] * 6


@pytest.mark.parametrize(("name", "own"), [("dynat_mail_at", True), ("dynat_mail_inner", False)])
def test_mails_margin_is_that_of_the_true_label_in_at_and_of_the_guides_in_inner(name, own):
    case = make_case()
    weighted, plain = terms_of(name, case), terms_of("dynat", case)
    label = case.y if own else case.g.argmax(1)
    w = margin_weight(case.s_adv, label, bias=-0.5, slope=10.0)
    torch.testing.assert_close(weighted["adv"], w * plain["adv"])
    torch.testing.assert_close(weighted["guide"], plain["guide"])
    assert not w.allclose(margin_weight(case.s_adv, case.g.argmax(1) if own else case.y, bias=-0.5, slope=10.0))


def test_mail_mse_is_lbgat_with_the_square_weighted():
    case = make_case()
    weighted, plain = terms_of("mail_mse", case), terms_of("lbgat", case)
    w = margin_weight(case.s_adv, case.y, bias=-0.5, slope=10.0)
    torch.testing.assert_close(weighted, plain | {"mse": w * plain["mse"]})
    assert moved_by(case, weighted)["mse"] == {"s_adv", "g"}


@pytest.mark.parametrize("name", ["dynat_mail_at", "dynat_mail_inner", "mail_mse"])
def test_a_weight_from_the_margin_takes_no_gradient_to_either_network(name):
    case = make_case()
    term = "mse" if name == "mail_mse" else "adv"
    weighted, plain = (terms_of(method, case)[term] for method in (name, "lbgat" if term == "mse" else "dynat"))
    w = (weighted / plain).detach()
    assert_equal_with_gradients(weighted.sum(), (w * plain).sum(), (case.s, case.s_adv, case.g))


def test_the_guides_answer_is_its_argmax_from_one_forward_without_a_graph():
    case = make_case()
    assert guides_answer(case.nets, case.x, case.y).equal(case.g.argmax(1))
    assert case.seen == "g"
