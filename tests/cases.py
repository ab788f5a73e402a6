"""What the tests of the methods share: fixed logits in place of networks, and the pieces that formulas are made of."""

from functools import partial
from types import SimpleNamespace

import torch
from torch import nn

from lib.attacks.pgd import pgd
from lib.data import Split
from lib.methods import METHODS, Nets, weight_at
from lib.methods.reweighting import CountIterates
from lib.train import Schedule, TrainingExtras, build_training

N, C = 6, 5
STEPS = 3  # of the attack, in the tests of a whole training step


def make_case(n=N, wrong=range(2), perfect=False):
    """Fixed random logits in place of networks; the teacher errs on x exactly at `wrong`, not on x' if `perfect`.

    The student has a last layer, the identity, for losses that look at what it is fed.
    """
    s, s_adv, t, t_adv, g = 2 * torch.randn(5, n, C, dtype=torch.double)
    y, wrong = t.argmax(1), torch.tensor([*wrong], dtype=torch.long)
    y[wrong] = t.argmin(1)[wrong]
    if perfect:
        t_adv[torch.arange(n), y] = t_adv.amax(1) + 1
    case = SimpleNamespace(s=s, s_adv=s_adv, t=t, t_adv=t_adv, g=g, y=y, x=torch.zeros(n), x_adv=torch.ones(n))
    case.seen, case.kappa, case.steps_seen = "", torch.arange(n) % 5, torch.full((n,), 4)
    for logits in (s, s_adv, t, t_adv, g):
        logits.requires_grad_()
    last = nn.Linear(C, C, bias=False, dtype=torch.double).requires_grad_(False)
    last.weight.copy_(torch.eye(C))

    def student(z):
        case.seen += "x" if z is case.x else "a"
        return last(case.s if z is case.x else case.s_adv)

    def guide(z):
        case.seen += "g" if z is case.x else "?"
        return case.g

    case.nets = Nets(student, lambda z: case.t if z is case.x else case.t_adv, guide)
    return case


def terms_of(name, case, progress=1.0, **chosen):
    method = METHODS[name]
    weights = {key: chosen.get(key, weight) for key, weight in method.weights.items()}
    seen = observed(name, case.kappa, case.steps_seen)
    return method.loss(case.nets, case.x, case.x_adv, case.y, **numbers(weights, progress), **seen)


def observed(name, kappa, steps_seen):
    """What the loss is given by the method's criterion."""
    return {"kappa": kappa, "steps_seen": steps_seen} if METHODS[name].criterion is CountIterates else {}


def forwards_of(name, progress=1.0):
    """The forwards of the method's loss in order: x and a the student at x and x', g the guide at x."""
    loss_of(name, case := make_case(), progress)
    return case.seen


def numbers(weights, progress=1.0, batch_size=128):
    return {key: weight_at(weight, progress, batch_size) for key, weight in weights.items()}


def loss_of(name, case, progress=1.0, **chosen):
    """What the training loop makes of the terms: their sum, its mean over the batch."""
    return sum(terms_of(name, case, progress, **chosen).values()).mean()


def moved_by(case, terms):
    """Which logits each term has a gradient for."""
    inputs, moved = {"s": case.s, "s_adv": case.s_adv, "g": case.g}, {}
    for name, term in terms.items():
        slopes = torch.autograd.grad(term.sum(), list(inputs.values()), materialize_grads=True, retain_graph=True)
        moved[name] = {key for key, slope in zip(inputs, slopes, strict=True) if slope.abs().max() > 0}
    return moved


def assert_equal_with_gradients(ours, theirs, inputs):
    torch.testing.assert_close(ours, theirs)
    gradients = (torch.autograd.grad(loss, inputs, materialize_grads=True) for loss in (ours, theirs))
    torch.testing.assert_close(next(gradients), next(gradients))


def divergence(p, q):
    return (p * (p / q).log()).sum(-1)


def label_loss(logits, y):
    return -logits.softmax(1)[range(len(y)), y].log()


def mail_weight(logits, y, bias, slope):
    p = logits.detach().softmax(1)
    gap = [max(row[j] for j in range(C) if j != label) - row[label] for row, label in zip(p, y, strict=True)]
    return 3 / (1 + (-slope * (torch.stack(gap) + bias)).exp())


def gair_weight(kappa):
    """At four steps."""
    w = torch.stack([(1 + torch.tanh(torch.tensor(-1 + 5 * (1 - 2 * k / 4)))) / 2 for k in kappa.tolist()])
    return w * len(w) / w.sum()


def make_training(name, student, teacher, x, y, guide=None, steps=STEPS, **extras):
    attack = partial(pgd, epsilon=0.05, step_size=0.02, steps=steps)
    method, schedule = METHODS[name], Schedule(5, len(y), milestones=(4,))
    extras = TrainingExtras(guide, **extras)
    return build_training(student, teacher, method, attack, Split(x, y), schedule, lambda net: 0.0, extras=extras)


def pgd_by_hand(value, x, x_adv, steps=STEPS):
    """PGD on the sum of value(x') in plain torch, with the ball and the step of `make_training`."""
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(value(x_adv).sum(), x_adv)
        x_adv = x_adv.detach() + 0.02 * gradient.sign()
        x_adv = torch.minimum(torch.maximum(x_adv, x - 0.05), x + 0.05).clamp(0, 1)
    return x_adv


def batches_seen(net):
    return net[1].num_batches_tracked.item()
