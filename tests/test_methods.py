from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from lib.attacks import gaussian, gaussian_in_image, pgd, uniform, uniform_in_image
from lib.data import Split
from lib.errors import UserError
from lib.methods import METHODS, Nets, fool_label, leave_clean, leave_teacher, part_from_teacher, weight_at
from lib.train import Schedule, Training

N, C = 6, 5
STEPS = 3  # of the attack, in the tests of a whole training step

# What the student sees in train mode while a loss is computed: x the clean batch, a the adversarial one.
FORWARDS = {
    "natural": "x",
    "pgd_at": "a",
    "pgd_at_as_released": "ax",
    "trades": "xa",
    "trades_as_released": "xax",
    "ard": "a",
    "ard_as_released": "ax",
    "iad": "xa",
    "iad_as_released": "aaxx",
    "rslad": "xa",
    "rslad_as_released": "ax",
    "akd": "a",
    "adaad": "xa",
    "adaad_as_released": "xa",
    "dgad": "xa",
    "dgad_as_printed": "xa",
    "dgad_map": "xa",
    "dgad_map_pcr": "xa",
    "adaad_els": "xa",
    "dgad_map_els_at": "xa",
    "dgad_map_els_st": "xa",
    "dgad_map_els": "xa",
    "dgad_smoothing": "xa",
    "dgad_mixing": "xa",
    "dgad_as_released": "xa",
    "dgad_mobilenet_as_released": "xa",
}
ATTACKED_IN_TRAIN_MODE = {"ard_as_released", "iad_as_released"}

# What the attack maximises and where it starts (dgad.md 2.1; AKD's and our own ARD's and IAD's are clipped).
ATTACKED = {
    "natural": (None, gaussian),
    "pgd_at": (fool_label, gaussian_in_image),
    "pgd_at_as_released": (fool_label, gaussian_in_image),
    "trades": (leave_clean, gaussian),
    "trades_as_released": (leave_clean, gaussian),
    "ard": (fool_label, uniform_in_image),
    "ard_as_released": (fool_label, uniform),
    "iad": (fool_label, uniform_in_image),
    "iad_as_released": (fool_label, uniform),
    "rslad": (leave_teacher, gaussian),
    "rslad_as_released": (leave_teacher, gaussian),
    "akd": (fool_label, uniform_in_image),
    "adaad": (part_from_teacher, gaussian),
    "adaad_as_released": (part_from_teacher, gaussian),
    "dgad": (part_from_teacher, gaussian),
    "dgad_as_printed": (part_from_teacher, gaussian),
    "dgad_map": (part_from_teacher, gaussian),
    "dgad_map_pcr": (part_from_teacher, gaussian),
    "adaad_els": (part_from_teacher, gaussian),
    "dgad_map_els_at": (part_from_teacher, gaussian),
    "dgad_map_els_st": (part_from_teacher, gaussian),
    "dgad_map_els": (part_from_teacher, gaussian),
    "dgad_smoothing": (part_from_teacher, gaussian),
    "dgad_mixing": (part_from_teacher, gaussian),
    "dgad_as_released": (part_from_teacher, gaussian),
    "dgad_mobilenet_as_released": (part_from_teacher, gaussian),
}

DGAD = [name for name in METHODS if name.startswith("dgad")]


# --- the losses, against their formulas written in plain torch ----------------------------------------------------


def make_case(n=N, wrong=range(2), perfect=False):
    """Fixed random logits in place of networks; the teacher errs on x exactly at `wrong`, not on x' if `perfect`."""
    s, s_adv, t, t_adv = 2 * torch.randn(4, n, C, dtype=torch.double)
    y, wrong = t.argmax(1), torch.tensor([*wrong], dtype=torch.long)
    y[wrong] = t.argmin(1)[wrong]
    if perfect:
        t_adv[torch.arange(n), y] = t_adv.amax(1) + 1
    case = SimpleNamespace(s=s, s_adv=s_adv, t=t, t_adv=t_adv, y=y, x=torch.zeros(n), x_adv=torch.ones(n), seen="")
    for logits in (s, s_adv, t, t_adv):
        logits.requires_grad_()

    def student(z):
        case.seen += "x" if z is case.x else "a"
        return case.s if z is case.x else case.s_adv

    case.nets = Nets(student, lambda z: case.t if z is case.x else case.t_adv)
    return case


def terms_of(name, case, progress=1.0, **chosen):
    method = METHODS[name]
    weights = {key: chosen.get(key, weight) for key, weight in method.weights.items()}
    return method.loss(case.nets, case.x, case.x_adv, case.y, **numbers(weights, progress))


def numbers(weights, progress=1.0, batch_size=128):
    return {key: weight_at(weight, progress, batch_size) for key, weight in weights.items()}


def loss_of(name, case, progress=1.0, **chosen):
    """What the training loop makes of the terms: their sum, its mean over the batch."""
    return sum(terms_of(name, case, progress, **chosen).values()).mean()


def divergence(p, q):
    return (p * (p / q).log()).sum(-1)


def label_loss(c, logits):
    return -logits.softmax(1)[range(len(c.y)), c.y].log()


def trades(c):
    return label_loss(c, c.s) + 6 * divergence(c.s.softmax(1), c.s_adv.softmax(1))


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


FORMULAS = {
    "natural": lambda c: label_loss(c, c.s),
    "pgd_at": lambda c: label_loss(c, c.s_adv),
    "pgd_at_as_released": lambda c: label_loss(c, c.s_adv),
    "trades": trades,
    "trades_as_released": trades,
    "ard": ard,
    "ard_as_released": lambda c: ard(c) / C,
    "iad": iad,
    "iad_as_released": lambda c: iad(c, teacher_share=lambda trust: 1),
    "rslad": rslad,
    "rslad_as_released": lambda c: rslad(c) / 10,
    "akd": akd,
    "adaad": adaad,
    "adaad_as_released": lambda c: adaad(c) / 10,
    "dgad": dgad,
    "dgad_as_printed": dgad_as_printed,
    "dgad_map": lambda c: pieces(c),
    "dgad_map_pcr": lambda c: pieces(c) + 5 * dgad_consistency(c),
    "adaad_els": lambda c: pieces(c, at=swapped, partition=False),
    "dgad_map_els_at": lambda c: pieces(c, at=swapped),
    "dgad_map_els_st": lambda c: pieces(c, st=swapped),
    "dgad_map_els": lambda c: pieces(c, st=swapped, at=swapped),
    "dgad_smoothing": lambda c: pieces(c, st=smoothed, at=smoothed) + 5 * dgad_consistency(c),
    "dgad_mixing": lambda c: pieces(c, st=mixed, at=mixed) + 5 * dgad_consistency(c),
    "dgad_as_released": dgad_code,
    "dgad_mobilenet_as_released": dgad_mobilenet_code,
}


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_and_its_gradient_are_those_of_the_formula(name):
    case = make_case()
    student = (case.s, case.s_adv)
    ours, theirs = loss_of(name, case), FORMULAS[name](case).mean()
    torch.testing.assert_close(ours, theirs)
    gradients = (torch.autograd.grad(loss, student, materialize_grads=True) for loss in (ours, theirs))
    torch.testing.assert_close(next(gradients), next(gradients))


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_forwards_the_student_as_often_and_in_the_order_the_recipe_says(name):
    case = make_case()
    loss_of(name, case)
    assert case.seen == FORWARDS[name]


@pytest.mark.parametrize("name", METHODS)
def test_the_terms_are_one_finite_number_per_image_and_train_nothing_but_the_student(name, make_net, batch):
    (x, y), student, teacher = batch, make_net(), make_net()
    x_adv = x + 0.03 * torch.randn_like(x)
    method = METHODS[name]
    terms = method.loss(Nets(student, teacher), x, x_adv, y, **numbers(method.weights))
    assert all(term.shape == y.shape and term.isfinite().all() for term in terms.values())
    sum(terms.values()).mean().backward()
    assert all(p.grad.isfinite().all() for p in student.parameters())
    assert student[0].weight.grad.abs().max() > 0
    assert all(p.grad is None for p in teacher.parameters())


def test_a_table_of_expectations_has_every_method_and_no_other():
    assert FORWARDS.keys() == METHODS.keys() == FORMULAS.keys() == ATTACKED.keys()


@pytest.mark.parametrize("name", METHODS)
def test_the_attack_maximises_and_starts_as_the_recipe_says(name):
    assert (METHODS[name].objective, METHODS[name].start) == ATTACKED[name]


# --- the training step around them --------------------------------------------------------------------------------


def make_training(name, student, teacher, x, y):
    attack = partial(pgd, epsilon=0.05, step_size=0.02, steps=STEPS)
    return Training(student, teacher, METHODS[name], attack, Split(x, y), Schedule(5, len(y)), lambda net: 0.0)


def batches_seen(net):
    return net[1].num_batches_tracked.item()


@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_leaves_no_trace_outside_the_recipe(name, make_net, batch):
    (x, y), student, teacher = batch, make_net(), make_net()
    teacher(x)  # so that its batch-norm has statistics to lose
    training = make_training(name, student, teacher if METHODS[name].needs_teacher else None, x, y)
    before, images, weights = deepcopy(teacher.state_dict()), x.clone(), student[0].weight.clone()
    in_training, rng = [m.training for m in teacher.modules()], torch.get_rng_state()
    training.train_step(x, y)
    assert all(tensor.equal(before[key]) for key, tensor in teacher.state_dict().items())
    assert [m.training for m in teacher.modules()] == in_training
    assert all(p.grad is None for p in teacher.parameters())
    assert x.equal(images)
    assert torch.get_rng_state().equal(rng)
    assert all(m.training for m in student.modules())
    assert not student[0].weight.equal(weights)
    loss_of(name, case := make_case(), progress=0.0)
    attack_steps = STEPS if name in ATTACKED_IN_TRAIN_MODE else 0
    assert batches_seen(student) == len(case.seen) + attack_steps


@pytest.mark.parametrize("name", METHODS)
def test_the_attack_moves_batch_norm_only_where_the_recipe_attacks_in_train_mode(name, make_net, batch):
    student = make_net()
    before = deepcopy(student.state_dict())
    training = make_training(name, student, make_net(), *batch)
    x_adv = training.craft(*batch)
    moved = name in ATTACKED_IN_TRAIN_MODE
    assert batches_seen(student) == (STEPS if moved else 0)
    assert student[1].running_mean.equal(before["1.running_mean"]) != moved
    assert all(m.training for m in student.modules())
    assert all(p.grad is None for p in student.parameters())
    assert x_adv.equal(batch[0]) == (name == "natural")


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


def test_fool_label_is_the_cross_entropy_of_the_student(linear_nets, views):
    (nets, _), (x, x_adv, y) = linear_nets, views
    expected = -nets.student(x_adv).softmax(1)[range(N), y].log()
    torch.testing.assert_close(fool_label(nets, x, y)(x_adv), expected)


def test_leave_clean_is_the_divergence_from_the_students_own_clean_prediction_made_once(linear_nets, views):
    (nets, calls), (x, x_adv, y) = linear_nets, views
    expected = divergence(nets.student(x).softmax(1), nets.student(x_adv).softmax(1))
    calls.clear()
    objective = leave_clean(nets, x, y)
    for _ in range(2):
        torch.testing.assert_close(objective(x_adv), expected)
    assert [z is x for z in calls] == [True, False, False]


def test_leave_teacher_is_the_divergence_from_the_teachers_clean_prediction(linear_nets, views):
    (nets, _), (x, x_adv, y) = linear_nets, views
    expected = divergence(nets.teacher(x).softmax(1), nets.student(x_adv).softmax(1))
    torch.testing.assert_close(leave_teacher(nets, x, y)(x_adv), expected)


def test_part_from_teacher_follows_the_gradient_of_both_networks_at_the_same_image(linear_nets, views):
    (nets, _), (x, x_adv, y) = linear_nets, views
    ours = part_from_teacher(nets, x, y)(x_adv)
    expected = divergence(nets.teacher(x_adv).softmax(1), nets.student(x_adv).softmax(1))
    torch.testing.assert_close(ours, expected)
    gradient, full = (torch.autograd.grad(value.sum(), x_adv)[0] for value in (ours, expected))
    torch.testing.assert_close(gradient, full)
    for half in (Nets(lambda z: nets.student(x), nets.teacher), Nets(nets.student, lambda z: nets.teacher(x))):
        assert torch.autograd.grad(part_from_teacher(half, x, y)(x_adv).sum(), x_adv)[0].abs().max() > 0


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
    case = make_case()
    loss_of("iad_as_released", case, progress=0.0)
    assert case.seen == "aax"


@pytest.mark.parametrize("name", ["dgad_as_released", "dgad_mobilenet_as_released"])
def test_the_nominal_batch_of_dgads_code_is_the_schedules(name):
    assert numbers(METHODS[name].weights, batch_size=64)["nominal"] == 64.0


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].needs_teacher])
def test_a_method_that_needs_a_teacher_says_so(name, make_net, batch):
    x, y = batch
    with pytest.raises(UserError, match="needs a teacher"):
        METHODS[name].loss(Nets(make_net()), x, x, y, **numbers(METHODS[name].weights))


def test_akd_gives_the_label_what_is_left_of_the_teachers_share():
    case = make_case()
    target = 0.7 * case.t_adv.softmax(1) + 0.3 * torch.eye(C)[case.y]
    expected = -(target * case.s_adv.softmax(1).log()).sum(1).mean()
    torch.testing.assert_close(loss_of("akd", case, mixing=0.7), expected)


def test_adaad_weighs_the_clean_divergence_with_what_is_left_of_the_adversarial_weight():
    case = make_case()
    clean = divergence(case.t.softmax(1), case.s.softmax(1))
    expected = 0.7 * adaad(case) + 0.3 * clean
    torch.testing.assert_close(loss_of("adaad", case, adv_weight=0.7), expected.mean())


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
