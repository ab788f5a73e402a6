from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from cases import (
    C,
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

from lib.losses import kl
from lib.methods import METHODS, Nets, kl_guide, kl_guide_as_printed
from lib.methods.d2r import kl_mean, kl_mean_as_released

D2R = [name for name in METHODS if name.startswith("d2r")]
CAG = [name for name in D2R if METHODS[name].guide_mode == "eval"]
PRINTED = ("d2r", "d2r_no_cag", "d2r_summed")  # eq. 2 to the letter
TABLE_2 = [(0, 1), (1, 0), (20, 1), (30, 1), (30, 20)]


def with_sign(positive):
    """A case where KL(S || G) - KL(G || S), the batch's mean at x, has this sign, and images of either sign."""
    for _ in range(100):
        case = make_case()
        each = skl(case)
        if (each.mean() > 0) == positive and (each > 0).any() and (each < 0).any():
            return case
    raise AssertionError


def skl(c):
    s, g = c.s.softmax(1), c.g.softmax(1)
    return divergence(s, g) - divergence(g, s)


# --- the loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "beta"), TABLE_2)
@pytest.mark.parametrize("lam", [1.0, 0.1])
@pytest.mark.parametrize("name", ["d2r", "d2r_no_cag"])
def test_d2rs_loss_is_eq_2_with_means_over_classes_whatever_its_weights(name, lam, alpha, beta):
    case = make_case()
    ours = loss_of(name, case, guide_weight=lam, adv_weight=float(alpha), skl_weight=float(beta))
    square = ((case.g - case.s_adv) ** 2).mean()
    adv = divergence(case.g.softmax(1), case.s_adv.softmax(1)).mean() / C
    theirs = lam * label_loss(case.g, case.y).mean() + square + alpha * adv + beta * skl(case).abs().mean() / C
    assert_equal_with_gradients(ours, theirs, (case.s, case.s_adv, case.g))


@pytest.mark.parametrize("name", [name for name in D2R if name != "d2r_one_sided"])
def test_every_coupling_term_moves_both_networks_and_the_label_the_guide_alone(name):
    case = make_case()
    moved = moved_by(case, terms_of(name, case))
    assert moved == {"guide": {"g"}, "mse": {"s_adv", "g"}, "adv": {"s_adv", "g"}, "skl": {"s", "g"}}


@pytest.mark.parametrize("name", D2R)
def test_without_its_divergences_d2r_is_lbgat(name):
    case = make_case()
    ours = loss_of(name, case, adv_weight=0.0, skl_weight=0.0)
    assert_equal_with_gradients(ours, loss_of("lbgat", case), (case.s, case.s_adv, case.g))


def test_sums_over_classes_as_printed_weigh_the_divergences_as_many_times_as_there_are_classes():
    case = make_case()
    mean, whole = terms_of("d2r", case), terms_of("d2r_summed", case)
    torch.testing.assert_close(whole, mean | {name: C * mean[name] for name in ("adv", "skl")})


@pytest.mark.parametrize(("name", "reverse"), [("d2r", False), ("d2r_as_released", True)])
def test_the_adversarial_divergence_is_the_guides_from_the_targets_as_printed_and_the_reverse_in_the_code(
    name, reverse
):
    case = make_case()
    a, g = case.s_adv.softmax(1), case.g.softmax(1)
    expected = 30 / C * (divergence(a, g) if reverse else divergence(g, a))
    torch.testing.assert_close(terms_of(name, case)["adv"], expected, atol=30e-5, rtol=0)
    assert not divergence(a, g).allclose(divergence(g, a), atol=1e-3)


@pytest.mark.parametrize("name", PRINTED)
def test_eq_2_takes_the_absolute_value_of_every_image_and_then_the_mean(name):
    case = with_sign(True)
    ours = terms_of(name, case, skl_weight=1.0)["skl"] * (1 if name == "d2r_summed" else C)
    theirs = torch.stack([abs(one) for one in skl(case)])
    torch.testing.assert_close(ours, theirs)
    assert_equal_with_gradients(ours.mean(), theirs.mean(), (case.s, case.g))


def test_eq_2s_mean_of_absolute_values_is_larger_than_the_codes_absolute_value_of_the_mean():
    """On random logits by a quarter and more; they are equal only where all differences of a batch have one sign."""
    case = with_sign(True)
    each, batch = (terms_of(name, case)["skl"].mean() for name in ("d2r", "d2r_one_sign"))
    assert each > 1.25 * batch
    with torch.no_grad():
        alike = skl(case) > 0
    ours, theirs = (terms_of(name, case)["skl"][alike] for name in ("d2r", "d2r_one_sign"))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("name", [name for name in D2R if name not in (*PRINTED, "d2r_one_sided")])
def test_the_code_takes_the_absolute_value_of_the_batch_not_of_each_image(name, positive):
    case = with_sign(positive)
    ours = terms_of(name, case, skl_weight=1.0)["skl"].mean() * C
    theirs = skl(case).mean() * (1 if positive else -1)
    torch.testing.assert_close(ours, theirs, atol=2e-5 * C, rtol=0)
    slopes = (torch.autograd.grad(value, (case.s, case.g)) for value in (ours, theirs))
    torch.testing.assert_close(next(slopes), next(slopes), atol=1e-4, rtol=0)
    assert (theirs - skl(case).abs().mean()).abs() > 0.1


def test_a_target_that_answers_as_its_guide_has_no_symmetric_term():
    case = make_case()
    with torch.no_grad():
        case.s.copy_(case.g)
    assert not terms_of("d2r", case)["skl"].any()


# --- one side per batch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positive", [True, False])
def test_the_remarks_difference_moves_the_target_where_it_is_positive_and_else_the_guide(positive):
    case = with_sign(positive)
    terms, both = terms_of("d2r_one_sided", case), terms_of("d2r_one_sign", case)
    torch.testing.assert_close(terms, both)
    assert moved_by(case, terms) == moved_by(case, both) | {"skl": {"s"} if positive else {"g"}}
    mover = case.s if positive else case.g
    one, other = (torch.autograd.grad(t["skl"].sum(), mover, retain_graph=True)[0] for t in (terms, both))
    torch.testing.assert_close(one, other)


# --- the divergences ----------------------------------------------------------------------------------------------


def test_the_weights_30_and_20_are_3_and_2_of_a_divergence_that_sums_over_ten_classes():
    p, q = torch.randn(2, 4, 10, dtype=torch.double)
    torch.testing.assert_close(30 * kl_mean(p, q), 3 * kl(p, q))
    torch.testing.assert_close(20 * kl_mean(p, q), 2 * divergence(p.softmax(1), q.softmax(1)))


def test_the_codes_divergence_is_its_sum_of_two_terms_class_by_class():
    p, q = torch.randn(2, 3, C, dtype=torch.double)
    a, b = q.log_softmax(1), p.softmax(1)
    expected = [sum(-a[i, c] * b[i, c] + (b[i, c] + 1e-5).log() * b[i, c] for c in range(C)) / C for i in range(3)]
    torch.testing.assert_close(kl_mean_as_released(p, q), torch.stack(expected))


def test_the_codes_divergence_is_larger_than_the_exact_one_by_at_most_1e_5():
    p, q = 4 * torch.randn(2, 1000, C, dtype=torch.double)
    above = kl_mean_as_released(p, q) - kl_mean(p, q)
    assert 0 < above.min() < above.max() <= 1e-5


@pytest.mark.parametrize("name", D2R)
def test_the_loss_is_finite_where_probabilities_underflow(name):
    case = make_case()
    with torch.no_grad():
        for logits, sign in ((case.s, 1), (case.s_adv, -1), (case.g, 1)):
            logits[0] = sign * 1e4 * torch.eye(C)[case.y[0]]
        case.g[1], case.s_adv[1] = -1e4 * torch.eye(C)[case.y[1]], 1e4 * torch.eye(C)[case.y[2]]
    loss = loss_of(name, case)
    assert loss.isfinite()
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(loss, (case.s, case.s_adv, case.g)))


# --- collaborative adversarial generation -------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "printed"), [(kl_guide, False), (kl_guide_as_printed, True)])
def test_cag_is_the_divergence_of_guide_and_target_with_the_guides_clean_output_from_one_forward(objective, printed):
    (a, b), calls = torch.randn(2, 48, C, dtype=torch.double), []
    x, x_adv = torch.rand(2, 6, 3, 4, 4, dtype=torch.double)
    x_adv.requires_grad_()

    def guide(z):
        calls.append(z)
        return z.flatten(1) @ b

    def by_hand(z):
        g, s = (x.flatten(1) @ b).softmax(1), (z.flatten(1) @ a).softmax(1)
        return divergence(s, g) if printed else divergence(g, s)

    value = objective(Nets(lambda z: z.flatten(1) @ a, guide=guide), x, torch.zeros(6, dtype=torch.long))
    for _ in range(2):
        assert_equal_with_gradients(value(x_adv).sum(), by_hand(x_adv).sum(), (x_adv,))
    assert [z is x for z in calls] == [True]
    some = torch.tensor([4, 1])
    torch.testing.assert_close(value.take(some)(x_adv[some]), by_hand(x_adv)[some])


def recorded_guide(make_net):
    """A guide whose statistics are not the batch's, with the modes and images of its forwards."""
    guide, seen = make_net(), SimpleNamespace(modes=[], images=[])
    with torch.no_grad():
        guide[1].running_mean.add_(2 * torch.randn(4))
    guide[1].register_forward_hook(lambda module, inputs, output: seen.modes.append(module.training))
    guide[0].register_forward_hook(lambda module, inputs, output: seen.images.append(inputs[0]))
    return guide, seen


@pytest.mark.parametrize("name", D2R)
def test_a_steps_guide_moves_its_statistics_once_and_by_the_clean_images(name, make_net, batch):
    guide, seen = recorded_guide(make_net)
    copy = deepcopy(guide).train()
    copy(batch[0])
    seen.modes.clear()
    seen.images.clear()
    training = make_training(name, make_net(), None, *batch, guide, steps=10)
    training.train_step(*batch)
    assert [mode for mode in seen.modes if mode] == [True]
    assert len(seen.images) == 1 + (name in CAG)
    torch.testing.assert_close(guide[1].running_mean, copy[1].running_mean)
    torch.testing.assert_close(guide[1].running_var, copy[1].running_var)
    assert guide[1].num_batches_tracked == 1
    assert guide.training


@pytest.mark.parametrize("name", CAG)
def test_cags_guide_answers_in_eval_mode_and_gets_no_gradient(name, make_net, batch):
    (x, y), student = batch, make_net()
    guide, _ = recorded_guide(make_net)
    training = make_training(name, student, None, x, y, guide)
    x_adv, _ = training.craft(x, y)
    with torch.no_grad():
        g, in_train_mode = deepcopy(guide).eval()(x), deepcopy(guide).train()(x)
    assert not g.allclose(in_train_mode, atol=0.1)
    net, generator = deepcopy(student).eval(), torch.Generator().manual_seed(0)
    start = METHODS[name].start(x, torch.tensor(0.05), generator)

    def value(z):
        p, q = g.softmax(1), net(z).softmax(1)
        return divergence(p, q) if name == "d2r_as_released" else divergence(q, p)

    torch.testing.assert_close(x_adv, pgd_by_hand(value, x, start))
    assert guide[1].num_batches_tracked == 0
    assert all(p.grad is None for net in (student, guide) for p in net.parameters())


@pytest.mark.parametrize("name", [name for name in D2R if name not in CAG])
def test_without_cag_the_guide_has_no_part_in_the_attack(name, make_net, batch):
    guide, seen = recorded_guide(make_net)
    training = make_training(name, make_net(), None, *batch, guide)
    training.craft(*batch)
    assert not seen.images


def test_the_targets_statistics_see_the_adversarial_images_and_then_the_clean_ones(make_net, batch):
    (x, y), student = batch, make_net()
    training = make_training("d2r", student, None, x, y, make_net())
    x_adv, _ = training.craft(x, y)
    training.generator.manual_seed(0)
    copy = deepcopy(student).train()
    copy(x_adv)
    copy(x)
    training.train_step(x, y)
    torch.testing.assert_close(student[1].running_mean, copy[1].running_mean)
    torch.testing.assert_close(student[1].running_var, copy[1].running_var)


# --- a guide that stays as it is (Figure 2a) ----------------------------------------------------------------------


def test_with_a_frozen_guide_lbgats_square_alone_is_left_and_moves_the_target_alone():
    case = make_case()
    case.nets = Nets(case.nets.student, lambda z: 1 * case.g, case.nets.guide)
    terms = terms_of("lbgat_frozen", case)
    torch.testing.assert_close(terms, {"mse": terms_of("lbgat", case)["mse"]})
    assert moved_by(case, terms) == {"mse": {"s_adv"}}


def test_a_frozen_guide_answers_in_eval_mode(make_net, batch):
    teacher, seen = recorded_guide(make_net)
    make_training("lbgat_frozen", make_net(), teacher, *batch).train_step(*batch)
    assert seen.modes == [False]
