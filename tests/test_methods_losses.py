from dataclasses import replace
from functools import partial

import pytest
import torch
import yaml
from cases import (
    STEPS,
    C,
    N,
    assert_equal_with_gradients,
    divergence,
    forwards_of,
    gair_weight,
    label_loss,
    loss_of,
    mail_weight,
    make_case,
    moved_by,
    numbers,
    terms_of,
)

from lib import ROOT
from lib.attacks.pgd import pgd
from lib.data import Split
from lib.losses import smoothed_cross_entropy
from lib.methods import METHODS, Nets, ce_label, gair, kl_clean, kl_teacher, kl_teacher_student, mail, weight_at
from lib.methods.reweighting import CountIterates, geometry_weight, margin_weight
from lib.train import Schedule, build_training

DGAD = [name for name in METHODS if name.startswith("dgad")]


# --- the losses, against their formulas written in plain torch ----------------------------------------------------


def trades(c):
    return label_loss(c.s, c.y) + 6 * divergence(c.s.softmax(1), c.s_adv.softmax(1))


def smoothed_loss(logits, y, share):
    target = torch.full((len(y), C), (1 - share) / (C - 1)).scatter(1, y[:, None], share)
    return -(target * logits.softmax(1).log()).sum(1)


def pgd_at_smoothed(c):
    return smoothed_loss(c.s_adv, c.y, 0.7)


def trades_smoothed(c):
    return smoothed_loss(c.s, c.y, 0.91) + 6 * divergence(c.s.softmax(1), c.s_adv.softmax(1))


def mart(c):
    """One image at a time, as the equations of dynat_d2r.md 3.3 stand."""
    losses = []
    for i, label in enumerate(c.y.tolist()):
        p, q = c.s[i].softmax(0), c.s_adv[i].softmax(0)
        wrong = max((j for j in range(C) if j != label), key=lambda j: q[j].item())
        boosted = -q[label].log() - (1.0001 - q[wrong] + 1e-12).log()
        losses.append(boosted + 6 * (1.0000001 - p[label]) * (p * (p.log() - (q + 1e-12).log())).sum())
    return torch.stack(losses)


def gairat(c):
    return gair_weight(c.kappa) * label_loss(c.s_adv, c.y)


def mail_trades(c):
    return label_loss(c.s, c.y) + 5 * mail_weight(c.s_adv, c.y, 0, 2) * divergence(c.s.softmax(1), c.s_adv.softmax(1))


def lbgat(c, trade_off=0):
    square = ((c.s_adv - c.g) ** 2).sum(1) / C
    return label_loss(c.g, c.y) + square + trade_off * divergence(c.s.softmax(1), c.s_adv.softmax(1))


def mail_mse(c):
    return label_loss(c.g, c.y) + mail_weight(c.s_adv, c.y, -0.5, 10) * ((c.s_adv - c.g) ** 2).sum(1) / C


def rat_trades(c):
    """As RAT's code: slopes by a gradient of the last layer, the labels as rows of a matrix that is filled."""

    def slopes(logits):
        weight = torch.eye(C, dtype=torch.double, requires_grad=True)
        return torch.autograd.grad(label_loss(logits.detach() @ weight.T, c.y).mean(), weight)[0].sum(1)

    def taught(gap, logits):
        gap = (gap - gap.min()) / (gap - gap.min()).sum()
        matrix = gap.repeat(C, 1).fill_diagonal_(0)
        matrix = (1 - 2 / C) * matrix / matrix.sum(1, keepdim=True)
        q, p = matrix.fill_diagonal_(2 / C)[c.y], logits.softmax(1)
        return (torch.special.xlogy(q, q) - q * p.log()).sum(1)

    r, r_adv = slopes(c.s), slopes(c.s_adv)
    first = taught(abs(r) - abs(r_adv), c.s_adv) + taught(abs(r_adv) - abs(r), c.s)
    second = taught(r_adv**2 - r**2, c.s_adv) + taught(r_adv**2 - r**2, c.s)
    plain = 0.8 * label_loss(c.s, c.y) + 6 * divergence(c.s.softmax(1), c.s_adv.softmax(1))
    return plain + 0.2 * 0.5 * first + 0.5 * 0.2 * 0.5 * second


def dynat(c, weight=1):
    return label_loss(c.g, c.y) + weight * label_loss(c.s_adv, c.g.argmax(1))


def dynat_inner_gairat(c):
    return label_loss(c.g, c.y) + gair_weight(c.kappa) * smoothed_loss(c.s_adv, c.g.argmax(1), 0.8)


def d2r(c, of=lambda p, q: divergence(p, q) / C, reverse=False, held=lambda s, g: (s, g), whole=False):
    """`of` is the divergence, `reverse` its direction at x', `held` is still in the difference, |.| of the `whole`."""
    a, s, g = (z.softmax(1) for z in (c.s_adv, c.s, c.g))
    square = ((c.s_adv - c.g) ** 2).mean()
    adv = of(a, g) if reverse else of(g, a)
    s, g = held(s, g)
    difference = of(s, g) - of(g, s)
    symmetric = difference.mean().abs() if whole else sum(abs(one) for one in difference) / len(difference)
    return label_loss(c.g, c.y).mean() + square + 30 * adv.mean() + 20 * symmetric


def d2r_one_sided(c):
    s, g = c.s.softmax(1), c.g.softmax(1)
    positive = divergence(s, g).mean() > divergence(g, s).mean()
    return d2r(c, held=lambda s, g: (s, g.detach()) if positive else (s.detach(), g), whole=True)


def d2r_code(c):
    return d2r(c, of=lambda p, q: (-q.log() * p + (p + 1e-5).log() * p).mean(1), reverse=True, whole=True)


def ard(c):
    return 30**2 * divergence((c.t / 30).softmax(1), (c.s_adv / 30).softmax(1))


def iad(c, teacher_share=lambda trust: trust):
    trust = c.t_adv.softmax(1)[range(len(c.y)), c.y] ** 0.1
    own = (1 - trust) * divergence(c.s.softmax(1), c.s_adv.softmax(1))
    return teacher_share(trust) * divergence(c.t.softmax(1), c.s_adv.softmax(1)) + own


def rslad(c):
    t, s, s_adv = c.t.softmax(1), c.s.softmax(1), c.s_adv.softmax(1)
    return 5 / 6 * divergence(t, s_adv) + 1 / 6 * divergence(t, s)


def akd(c):
    target = 0.5 * c.t_adv.softmax(1) + 0.5 * torch.eye(C)[c.y]
    return -(target * c.s_adv.softmax(1).log()).sum(1)


def adaad(c):
    return divergence(c.t_adv.softmax(1), c.s_adv.softmax(1))


def adaad_kl_as_printed(c):
    p, q = c.t_adv.softmax(1), c.s_adv.softmax(1)
    return (q * (q.log() - p.log())).sum(1)


def dgad_kl_as_printed(c):
    """One image at a time, the student's distribution before the logarithm."""
    losses = []
    for i, label in enumerate(c.y.tolist()):
        wrong = c.t[i].argmax().item() != label
        p, q = (z[i].softmax(0) for z in ((c.t, c.s) if wrong else (c.t_adv, c.s_adv)))
        losses.append((q * (q.log() - swapped(p, label).log())).sum())
    return sum(losses) / len(losses) + 5 * dgad_consistency(c)


def dgad_branches(c):
    """One image at a time: the clean divergences of the images the teacher gets wrong, the adversarial of the rest."""
    clean, adv = [], []
    for i, label in enumerate(c.y.tolist()):
        wrong = c.t[i].argmax().item() != label
        p, q = (z[i].softmax(0) for z in ((c.t, c.s) if wrong else (c.t_adv, c.s_adv)))
        (clean if wrong else adv).append(divergence(swapped(p, label), q))
    return clean, adv


def swapped(p, label):
    order, top = list(range(C)), p.argmax().item()
    order[top], order[label] = label, top
    return p[order]


def smoothed(p, label):
    return p if p.argmax() == label else 0.9 * torch.eye(C)[label] + 0.1 / C


def mixed(p, label):
    return p if p.argmax() == label else 0.5 * p + 0.5 * torch.eye(C)[label]


def pieces(c, st=lambda p, label: p, at=lambda p, label: p, partition=True):
    """DGAD's ablation, one image at a time: MAP or not, and what is done to the teacher's answer on either side."""
    losses = []
    for i, label in enumerate(c.y.tolist()):
        clean = partition and c.t[i].argmax().item() != label
        rule, taught, own = (st, c.t, c.s) if clean else (at, c.t_adv, c.s_adv)
        losses.append(divergence(rule(taught[i].softmax(0), label), own[i].softmax(0)))
    return sum(losses) / len(losses)


def dgad_consistency(c):
    return (c.s.softmax(1) - c.s_adv.softmax(1)).pow(2).sum(1).mean() / C


def dgad(c):
    clean, adv = dgad_branches(c)
    return sum(clean + adv) / len(c.y) + 5 * dgad_consistency(c)


def dgad_as_printed(c):
    clean, adv = dgad_branches(c)
    return sum(clean + adv) / len(c.y) + 5 * (c.s.softmax(1) - c.s_adv.softmax(1)).norm(dim=1).mean()


def dgad_code(c):
    clean, adv = dgad_branches(c)
    n = len(clean)
    return n / 128 * sum(clean) / n + (128 - n) / 128 * sum(adv) / len(adv) + 5 * dgad_consistency(c)


def dgad_mobilenet_code(c):
    clean, adv = dgad_branches(c)
    n = len(clean)
    bracket = n / 128 * sum(clean) / n + (128 - n) / 128
    return 0.5 * bracket * sum(adv) / len(adv) + 10 * dgad_consistency(c)


# The forwards of each loss in order (x and a the student at x and x', g the guide at x), and its formula.
FORMULAS = {
    "natural": ("x", lambda c: label_loss(c.s, c.y)),
    "pgd_at": ("a", lambda c: label_loss(c.s_adv, c.y)),
    "pgd_at_as_released": ("ax", lambda c: label_loss(c.s_adv, c.y)),
    "pgd_at_uniform": ("a", lambda c: label_loss(c.s_adv, c.y)),
    "pgd_at_uniform_as_released": ("ax", lambda c: label_loss(c.s_adv, c.y)),
    "rice_pgd_at_as_released": ("ax", lambda c: label_loss(c.s_adv, c.y)),
    "cat_pgd_at_as_released": ("a", lambda c: label_loss(c.s_adv, c.y)),
    "trades": ("xa", trades),
    "trades_as_released": ("xax", trades),
    "pgd_at_smoothed": ("a", pgd_at_smoothed),
    "trades_smoothed": ("xa", trades_smoothed),
    "mart": ("xa", mart),
    "fat": ("a", lambda c: label_loss(c.s_adv, c.y)),
    "fat_as_released": ("a", lambda c: label_loss(c.s_adv, c.y)),
    "sat": ("a", lambda c: label_loss(c.s_adv, c.y)),
    "dart": ("a", lambda c: label_loss(c.s_adv, c.y)),
    "dart_as_released": ("a", lambda c: label_loss(c.s_adv, c.y) * label_loss(c.s_adv, c.y).detach()),
    "gairat": ("a", gairat),
    "gairat_smoothed": ("a", lambda c: gair_weight(c.kappa) * smoothed_loss(c.s_adv, c.y, 0.8)),
    "mail_at": ("a", lambda c: mail_weight(c.s_adv, c.y, -0.5, 10) * label_loss(c.s_adv, c.y)),
    "mail_trades": ("xa", mail_trades),
    "rat_trades": ("ax", rat_trades),
    "lbgat": ("axg", lbgat),
    "lbgat_frozen": ("ax", lambda c: ((c.s_adv - c.t) ** 2).sum(1) / C),
    "mail_mse": ("axg", mail_mse),
    "dynat": ("axg", dynat),
    "dynat_inner": ("axg", dynat),
    "dynat_awp": ("axg", dynat),
    "dynat_inner_awp": ("axg", dynat),
    "dynat_inner_gairat": ("axg", dynat_inner_gairat),
    "dynat_mail_at": ("axg", lambda c: dynat(c, mail_weight(c.s_adv, c.y, -0.5, 10))),
    "dynat_mail_inner": ("axg", lambda c: dynat(c, mail_weight(c.s_adv, c.g.argmax(1), -0.5, 10))),
    "d2r": ("axg", d2r),
    "d2r_as_released": ("axg", d2r_code),
    "d2r_one_sign": ("axg", lambda c: d2r(c, whole=True)),
    "d2r_summed": ("axg", lambda c: d2r(c, of=divergence)),
    "d2r_one_sided": ("axg", d2r_one_sided),
    "d2r_no_cag": ("axg", d2r),
    "d2r_no_cag_as_released": ("axg", d2r_code),
    "ard": ("a", ard),
    "ard_as_released": ("ax", lambda c: ard(c) / C),
    "iad": ("xa", iad),
    "iad_as_released": ("aaxx", lambda c: iad(c, teacher_share=lambda trust: 1)),
    "rslad": ("xa", rslad),
    "rslad_as_released": ("ax", lambda c: rslad(c) / 10),
    "akd": ("a", akd),
    "adaad": ("xa", adaad),
    "adaad_as_released": ("xa", lambda c: adaad(c) / 10),
    "adaad_kl_as_printed": ("xa", adaad_kl_as_printed),
    "dgad": ("xa", dgad),
    "dgad_kl_as_printed": ("xa", dgad_kl_as_printed),
    "dgad_as_printed": ("xa", dgad_as_printed),
    "dgad_map": ("xa", lambda c: pieces(c)),
    "dgad_map_pcr": ("xa", lambda c: pieces(c) + 5 * dgad_consistency(c)),
    "adaad_els": ("xa", lambda c: pieces(c, at=swapped, partition=False)),
    "dgad_map_els_at": ("xa", lambda c: pieces(c, at=swapped)),
    "dgad_map_els_st": ("xa", lambda c: pieces(c, st=swapped)),
    "dgad_map_els": ("xa", lambda c: pieces(c, st=swapped, at=swapped)),
    "dgad_smoothing": ("xa", lambda c: pieces(c, st=smoothed, at=smoothed) + 5 * dgad_consistency(c)),
    "dgad_mixing": ("xa", lambda c: pieces(c, st=mixed, at=mixed) + 5 * dgad_consistency(c)),
    "dgad_as_released": ("xa", dgad_code),
    "dgad_mobilenet_as_released": ("xa", dgad_mobilenet_code),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_loss_its_gradient_and_its_forwards_are_those_of_the_recipe(name):
    case, (forwards, formula) = make_case(), FORMULAS[name]
    ours = loss_of(name, case)
    assert case.seen == forwards
    assert_equal_with_gradients(ours, formula(case).mean(), (case.s, case.s_adv, case.g))


# --- what the attacks maximise ------------------------------------------------------------------------------------


@pytest.fixture
def linear_nets():
    """Two linear networks on 3x4x4 images in float64, the student's forwards counted."""
    (a, b), calls = torch.randn(2, 48, C, dtype=torch.double), []

    def student(z):
        calls.append(z)
        return z.flatten(1) @ a

    return Nets(student, lambda z: z.flatten(1) @ b), calls


@pytest.fixture
def views():
    """(x, x', y) in float64, x' a leaf."""
    x, x_adv = torch.rand(2, N, 3, 4, 4, dtype=torch.double)
    return x, x_adv.requires_grad_(), torch.arange(N) % C


def test_ce_label_is_the_cross_entropy_of_the_student(linear_nets, views):
    (nets, _), (x, x_adv, y) = linear_nets, views
    expected = -nets.student(x_adv).softmax(1)[range(N), y].log()
    torch.testing.assert_close(ce_label(nets, x, y)(x_adv), expected)


def test_kl_clean_is_the_divergence_from_the_students_own_clean_prediction_made_once(linear_nets, views):
    (nets, calls), (x, x_adv, y) = linear_nets, views
    expected = divergence(nets.student(x).softmax(1), nets.student(x_adv).softmax(1))
    calls.clear()
    objective = kl_clean(nets, x, y)
    for _ in range(2):
        torch.testing.assert_close(objective(x_adv), expected)
    assert [z is x for z in calls] == [True, False, False]


def test_kl_teacher_is_the_divergence_from_the_teachers_clean_prediction(linear_nets, views):
    (nets, _), (x, x_adv, y) = linear_nets, views
    expected = divergence(nets.teacher(x).softmax(1), nets.student(x_adv).softmax(1))
    torch.testing.assert_close(kl_teacher(nets, x, y)(x_adv), expected)


def test_kl_teacher_student_follows_the_gradient_of_both_networks_at_the_same_image(linear_nets, views):
    (nets, _), (x, x_adv, y) = linear_nets, views
    ours = kl_teacher_student(nets, x, y)(x_adv)
    expected = divergence(nets.teacher(x_adv).softmax(1), nets.student(x_adv).softmax(1))
    torch.testing.assert_close(ours, expected)
    gradient, full = (torch.autograd.grad(value.sum(), x_adv)[0] for value in (ours, expected))
    torch.testing.assert_close(gradient, full)
    for half in (Nets(lambda z: nets.student(x), nets.teacher), Nets(nets.student, lambda z: nets.teacher(x))):
        assert torch.autograd.grad(kl_teacher_student(half, x, y)(x_adv).sum(), x_adv)[0].abs().max() > 0


# --- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["iad", "iad_as_released"])
@pytest.mark.parametrize(("epoch", "exponent"), [(0, 0.0), (59, 0.0), (60, 0.1), (199, 0.1)])
def test_iad_trusts_its_teacher_fully_until_epoch_60_of_200(name, epoch, exponent):
    assert numbers(METHODS[name].weights, epoch * 391 / (200 * 391)) == {"exponent": exponent}


@pytest.mark.parametrize("name", ["iad", "iad_as_released"])
def test_iad_with_full_trust_is_the_divergence_from_the_teachers_clean_prediction(name):
    case = make_case()
    terms = terms_of(name, case, progress=0.0)
    assert not terms["self"].any()
    torch.testing.assert_close(terms["teacher"], divergence(case.t.softmax(1), case.s_adv.softmax(1)))


def test_iads_code_forwards_the_clean_images_once_before_trust_counts_and_twice_after():
    assert forwards_of("iad_as_released", progress=0.0) == "aax"


@pytest.mark.parametrize("name", ["dgad_as_released", "dgad_mobilenet_as_released"])
def test_the_nominal_batch_of_dgads_code_is_the_schedules(name):
    assert numbers(METHODS[name].weights, batch_size=64)["nominal"] == 64.0


def test_akd_gives_the_label_what_is_left_of_the_teachers_share():
    case = make_case()
    target = 0.7 * case.t_adv.softmax(1) + 0.3 * torch.eye(C)[case.y]
    expected = -(target * case.s_adv.softmax(1).log()).sum(1).mean()
    torch.testing.assert_close(loss_of("akd", case, mixing=0.7), expected)


def test_gowals_labels_share_a_smoothing_of_a_tenth_among_all_ten_classes_the_true_one_too():
    logits, y = torch.randn(20, 10, dtype=torch.double), torch.arange(20) % 10
    given = METHODS["trades_smoothed"].weights["true_share"]
    expected = torch.nn.functional.cross_entropy(logits, y, label_smoothing=0.1)
    torch.testing.assert_close(smoothed_cross_entropy(logits, y, given).mean(), expected)
    table = yaml.safe_load((ROOT / "params" / "tables" / "table5_las_at.yaml").read_text())
    assert [row["weights"] for row in table["rows"] if row["method"] == "trades_smoothed"] == [{"true_share": given}]


def test_adaad_weighs_the_clean_divergence_with_what_is_left_of_the_adversarial_weight():
    case = make_case()
    clean = divergence(case.t.softmax(1), case.s.softmax(1))
    expected = 0.7 * adaad(case) + 0.3 * clean
    torch.testing.assert_close(loss_of("adaad", case, adv_weight=0.7), expected.mean())


@pytest.mark.parametrize(
    ("name", "weight", "epochs", "values"),
    [
        ("fat", "patience", 120, {0: 0, 49: 0, 50: 1, 89: 1, 90: 2, 119: 2}),
        ("sat", "gap", 100, {0: 0, 30: 0, 40: 0.1, 50: 0.2, 70: 0.4, 99: 0.4}),
        ("dart", "bound", 120, {0: 0.5, 50: 0.25, 99: 0.005, 100: 0, 119: 0}),
        ("dart_as_released", "bound", 120, {0: 0.5, 50: 0.25, 99: 0.005, 100: 0, 119: 0}),
        ("dart_as_released", "active", 120, {0: 0, 1: 1, 119: 1}),
        ("gairat", "active", 120, {0: 0, 58: 0, 59: 1, 119: 1}),
        ("mail_at", "active", 120, {0: 0, 75: 0, 76: 1, 119: 1}),
        ("mail_trades", "active", 120, {0: 0, 75: 0, 76: 1, 119: 1}),
        ("mail_mse", "active", 120, {0: 0, 75: 0, 76: 1, 119: 1}),
        ("dynat_mail_at", "active", 120, {0: 0, 75: 0, 76: 1, 119: 1}),
        ("dynat_mail_inner", "active", 120, {0: 0, 75: 0, 76: 1, 119: 1}),
        ("dynat_inner_gairat", "active", 120, {0: 0, 68: 0, 69: 1, 119: 1}),
    ],
)
def test_a_curriculum_changes_at_the_epochs_of_its_authors(name, weight, epochs, values):
    given = METHODS[name].all_weights[weight]
    for epoch, value in values.items():
        assert weight_at(given, epoch * 391 / (epochs * 391), 128) == pytest.approx(value)


# --- weights per image --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "plain", "chosen"),
    [
        ("dart_as_released", "pgd_at", {}),
        ("gairat", "pgd_at", {}),
        ("mail_at", "pgd_at", {}),
        ("mail_trades", "trades", {"trade_off": 5.0}),
        ("mail_mse", "lbgat", {}),
        ("dynat_mail_at", "dynat", {}),
        ("dynat_mail_inner", "dynat", {}),
        ("dynat_inner_gairat", "dynat", {"true_share": 1.0}),
    ],
)
def test_before_its_burn_in_is_over_a_reweighted_loss_is_the_plain_one(name, plain, chosen):
    case = make_case()
    ours, theirs = loss_of(name, case, progress=0.0, **chosen), loss_of(plain, case, **chosen)
    assert_equal_with_gradients(ours, theirs, (case.s, case.s_adv, case.g))


@pytest.mark.parametrize("steps", [1, 3, 10, 11])
def test_gairats_weight_depends_on_the_share_of_the_iterates_that_are_right_whatever_their_number(steps):
    kappa = torch.arange(steps + 1)
    w = geometry_weight(kappa, torch.full_like(kappa, steps), lam=-1.0)
    right, always_wrong = kappa.double() / steps, w[0]
    expected = (1 + torch.tanh(-1 + 5 * (1 - 2 * right))) / 2
    torch.testing.assert_close(w / always_wrong, (expected / expected[0]).float(), rtol=1e-4, atol=0)
    assert w.mean().item() == pytest.approx(1)
    torch.testing.assert_close(w, geometry_weight(3 * kappa, torch.full_like(kappa, 3 * steps), lam=-1.0))


def test_gairats_weight_is_the_authors_at_ten_steps():
    kappa = torch.tensor([0.0, 3.0, 4.0, 5.0, 10.0])
    theirs = ((-1 + (5 - kappa) * 5 / 5).tanh() + 1) / 2
    ours = geometry_weight(kappa.long(), torch.full((5,), 10), lam=-1.0)
    torch.testing.assert_close(ours, theirs * 5 / theirs.sum(), rtol=1e-5, atol=1e-7)


def test_images_that_are_all_right_at_all_iterates_weigh_one_each_and_so_do_those_that_were_not_attacked():
    ten = torch.full((4,), 10)
    torch.testing.assert_close(geometry_weight(ten, ten, lam=-1.0), torch.ones(4))
    torch.testing.assert_close(geometry_weight(0 * ten, 0 * ten, lam=-1.0), torch.ones(4))


def test_gairats_criterion_counts_each_images_own_iterates(make_net, batch):
    (x, y), net = batch, make_net().eval()
    criterion, steps = CountIterates(x, y, 0.1), torch.tensor([0, 1, 2, 3, 4, 5])
    net = criterion.listen(net)
    objective = ce_label(Nets(net), x, y)
    pgd(objective, x, epsilon=0.1, step_size=0.02, steps=steps, criterion=criterion)
    assert criterion.observed()["steps_seen"].equal(steps)
    assert (criterion.observed()["kappa"] <= steps).all()


def test_a_training_step_gives_gairats_loss_how_often_each_image_was_right_in_its_own_attack(make_net, batch):
    given_to_loss = {}

    def spy(nets, x, x_adv, y, *, kappa, steps_seen, lam, active):
        given_to_loss.update(kappa=kappa, steps_seen=steps_seen)
        return {"adv": nets.student(x_adv).sum(1)}

    (x, y), student = batch, make_net().eval()
    with torch.no_grad():
        y[:3] = student(x).argmax(1)[:3]  # x' stays so near that these stay right
        y[3:] = student(x).argmin(1)[3:]
    attack = partial(pgd, epsilon=1e-6, step_size=1e-6, steps=STEPS)
    method = replace(METHODS["gairat"], loss=spy)
    build_training(student, None, method, attack, Split(x, y), Schedule(5, len(y)), lambda net: 0.0).train_step(x, y)
    assert given_to_loss["kappa"].tolist() == [STEPS] * 3 + [0] * 3
    assert given_to_loss["steps_seen"].tolist() == [STEPS] * 6


def test_mails_weight_rises_with_the_margin_by_which_an_image_is_wrong_from_0_to_3():
    logits = torch.tensor([[20.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 20.0, 0.0]], requires_grad=True)
    w = margin_weight(logits, torch.zeros(3, dtype=torch.long), bias=0.0, slope=2.0)
    torch.testing.assert_close(w, 3 * torch.tensor([-2.0, 0.0, 2.0]).sigmoid())
    assert not w.requires_grad


@pytest.mark.parametrize("wrap", [gair, mail])
def test_a_reweighting_fits_any_loss_and_leaves_its_other_terms_and_weights_alone(wrap):
    case, calls = make_case(), []

    def loss(nets, x, x_adv, y, *, own):
        calls.append(own)
        nets.student(x)
        return {"a": nets.student(x_adv).sum(1), "b": torch.ones(len(y), dtype=torch.double)}

    given = (
        {"kappa": case.kappa, "steps_seen": case.steps_seen, "lam": -1.0}
        if wrap is gair
        else {"bias": 0.1, "slope": 3.0}
    )
    terms = wrap(loss, "a")(case.nets, case.x, case.x_adv, case.y, active=1.0, own=7, **given)
    w = terms["a"] / case.s_adv.sum(1)
    expected = (
        geometry_weight(case.kappa, case.steps_seen, -1.0).double()
        if wrap is gair
        else mail_weight(case.s_adv, case.y, 0.1, 3)
    )
    torch.testing.assert_close(w.detach(), expected)
    assert terms["b"].equal(torch.ones(N, dtype=torch.double))
    assert (calls, case.seen) == ([7], "xa")


# --- LBGAT's and MART's gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("trade_off", [0.0, 6.0])
def test_lbgats_regulariser_comes_with_its_weight(trade_off):
    case = make_case()
    ours, theirs = loss_of("lbgat", case, trade_off=trade_off), lbgat(case, trade_off).mean()
    assert_equal_with_gradients(ours, theirs, (case.s, case.s_adv, case.g))


def test_lbgats_square_pulls_target_and_guide_and_its_label_only_the_guide():
    case = make_case()
    terms = terms_of("lbgat", case, trade_off=6.0)
    assert list(terms) == ["guide", "mse", "adv"]
    assert moved_by(case, terms) == {"guide": {"g"}, "mse": {"s_adv", "g"}, "adv": {"s", "s_adv"}}


def test_marts_loss_is_finite_where_probabilities_underflow():
    case = make_case()
    with torch.no_grad():
        case.s_adv[0], case.s_adv[1] = 1e4 * torch.eye(C)[case.y[0]], -1e4 * torch.eye(C)[case.y[1]]
        case.s[0], case.s[1] = -1e4 * torch.eye(C)[case.y[0]], 1e4 * torch.eye(C)[case.y[1]]
    loss = loss_of("mart", case)
    slopes = torch.autograd.grad(loss, (case.s, case.s_adv))
    assert loss.isfinite()
    assert all(slope.isfinite().all() for slope in slopes)


# --- DGAD's special cases (dgad.md 1.6, 1.8) ----------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, 2, N])
def test_dgads_code_is_its_formula_on_a_full_batch(wrong):
    case = make_case(wrong=range(wrong))
    ours, code = terms_of("dgad", case), terms_of("dgad_as_released", case, nominal=float(N))
    torch.testing.assert_close(code, ours)


def test_dgads_code_weighs_a_partial_batch_by_the_nominal_size():
    case = make_case(80, wrong=range(8))
    each, code = terms_of("dgad", case), terms_of("dgad_as_released", case, nominal=128.0)
    clean, adv = (code[name].div(each[name]).div(80) for name in ("clean", "adv"))
    torch.testing.assert_close(clean[:8], torch.full_like(clean[:8], 1 / 128))
    torch.testing.assert_close(adv[8:], torch.full_like(adv[8:], (128 - 8) / (128 * 72)))
    assert not code["clean"][8:].any()
    assert not code["adv"][:8].any()
    torch.testing.assert_close(code["pcr"], each["pcr"])


@pytest.mark.parametrize("wrong", [0, N])
@pytest.mark.parametrize("name", DGAD)
def test_dgad_is_finite_where_the_teacher_errs_nowhere_or_everywhere(name, wrong):
    case = make_case(wrong=range(wrong))
    loss = loss_of(name, case)
    gradients = torch.autograd.grad(loss, (case.s, case.s_adv))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ["dgad", "dgad_as_printed", "dgad_as_released"])
def test_dgad_without_consistency_and_with_a_perfect_teacher_is_adaad(name):
    case = make_case(wrong=[], perfect=True)
    torch.testing.assert_close(loss_of(name, case, beta=0.0, nominal=float(N)), loss_of("adaad", case))


def test_an_image_the_teacher_gets_wrong_has_no_adversarial_term_and_the_others_no_clean_one():
    case = make_case(wrong=[1, 4])
    terms = terms_of("dgad", case)
    assert terms["clean"].nonzero().flatten().tolist() == [1, 4]
    assert terms["adv"].nonzero().flatten().tolist() == [0, 2, 3, 5]


def test_the_teachers_error_is_judged_on_the_clean_image_before_the_labels_are_swapped():
    case = make_case(wrong=[], perfect=False)
    with torch.no_grad():
        case.t_adv[:] = -case.t_adv  # x' may fool the teacher; that alone makes no image clean-trained
    assert not terms_of("dgad", case)["clean"].any()
