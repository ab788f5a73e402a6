"""What released code runs today: attacks, training steps and evaluations, written out with the work that they waste.

Nothing here is fast or makes a result: the benchmark times the library against it, and tests hold the two equal.
Images x (N, C, H, W) in [0, 1], radii in the same unit; attacks start at a given x_start, so that both can share it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from lib.attacks.pgd import uniform_in_image
from lib.data import Split, to_float
from lib.errors import choose
from lib.evaluate import AttackSpec
from lib.losses import cross_entropy, margin, smoothed_target, swap_labels
from lib.models.modes import mode


class Networks(NamedTuple):
    """The student and the method's second network, if any: a frozen teacher, or a guide that is trained too."""

    student: nn.Module
    other: nn.Module


class Ball(NamedTuple):
    """Radius, step size and number of steps: numbers, or tensors (N,) where every image has its own."""

    epsilon: float | Tensor
    step_size: float | Tensor
    steps: int | Tensor


Loss = Callable[[Networks, Tensor, Tensor, Tensor], Tensor]  # (nets, x, y, x') -> a scalar


class Released(NamedTuple):
    """A method's training step as released: its row in METHODS, what the attack maximises and training minimises.

    The attack differentiates weights too (loss.backward()), or the input alone; `other_trains` is the second network's
    mode during the attack.
    """

    method: str
    objective: Loss
    loss: Loss
    weights_too: bool = False
    other_trains: bool = False


def attack(
    loss: Callable[[Tensor], Tensor], x: Tensor, x_start: Tensor, ball: Ball, weights_too: bool = True
) -> Tensor:
    """Signed ascent on the scalar loss(x'): every image takes part in every pass, even after its own last step.

    With `weights_too` every weight's gradient is computed and accumulates; without it, their activations are kept.
    """
    epsilon, step_size, steps = (torch.as_tensor(value).to(x).reshape(-1, 1, 1, 1) for value in ball)
    x_adv = x_start
    for t in range(int(steps.max())):
        x_adv = x_adv.detach().requires_grad_()
        if weights_too:
            loss(x_adv).backward()
        gradient = x_adv.grad if weights_too else torch.autograd.grad(loss(x_adv), x_adv)[0]
        assert gradient is not None
        x_adv = x_adv.detach() + (t < steps) * step_size * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - epsilon), x + epsilon).clamp(0, 1)
    return x_adv.detach()


def _kl(target: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(logits, 1), F.softmax(target, 1), reduction="batchmean")


def _floored_kl(target: Tensor, logits: Tensor) -> Tensor:
    p = F.softmax(target, 1)
    return (p * (p + 1e-5).log() - p * F.log_softmax(logits, 1)).mean()


def _ce_label(nets: Networks, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    return F.cross_entropy(nets.student(x_adv), y)


def _kl_teacher_student(nets: Networks, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """AdaAD, DGAD: the teacher's weights require gradients, so the teacher's activations are all kept."""
    return _kl(nets.other(x_adv), nets.student(x_adv))


def _ce_smoothed(nets: Networks, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    logits = nets.student(x_adv)
    return F.cross_entropy(logits, smoothed_target(y, logits.shape[1], true_share=0.7))


def _trades(nets: Networks, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """x is forwarded twice: once for the label, once as the divergence's target."""
    student, student_adv, again = nets.student(x), nets.student(x_adv), nets.student(x)
    return F.cross_entropy(student, y) + 6.0 * _kl(again, student_adv)


def _dynat(nets: Networks, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """The target's clean forward serves batch-norm alone, and keeps its activations."""
    student_adv, unused, guide = nets.student(x_adv), nets.student(x), nets.other(x)
    loss = F.cross_entropy(guide, y) + F.cross_entropy(student_adv, guide.argmax(1))
    del unused
    return loss


def _d2r(nets: Networks, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    student_adv, student, guide = nets.student(x_adv), nets.student(x), nets.other(x)
    gap = (_floored_kl(student, guide) - _floored_kl(guide, student)).abs()
    terms = F.cross_entropy(guide, y) + F.mse_loss(student_adv, guide)
    return terms + 30 * _floored_kl(student_adv, guide) + 20 * gap


def _adaad(nets: Networks, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """The clean term has weight 0, and is computed and differentiated."""
    with torch.no_grad():
        teacher, teacher_adv = nets.other(x), nets.other(x_adv)
    student, student_adv = nets.student(x), nets.student(x_adv)
    return 1.0 * _kl(teacher_adv, student_adv) + 0.0 * _kl(teacher, student)


def _dgad(nets: Networks, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    with torch.no_grad():
        teacher, teacher_adv = nets.other(x), nets.other(x_adv)
    student, student_adv = nets.student(x), nets.student(x_adv)
    wrong = teacher.argmax(1) != y
    loss = 5.0 * F.mse_loss(student_adv.softmax(1), student.softmax(1))
    for part, target, logits in ((wrong, teacher, student), (~wrong, teacher_adv, student_adv)):
        if part.any():
            loss = loss + part.sum() / len(y) * _kl(swap_labels(target, y)[part], logits[part])
    return loss


RELEASED: dict[str, Released] = {
    "PGD-AT": Released("pgd_at_uniform", _ce_label, _ce_label, weights_too=True),
    # the clean output is computed anew at every step of the attack
    "TRADES": Released("trades_as_released", lambda nets, x, y, z: _kl(nets.student(x), nets.student(z)), _trades),
    # the guide is forwarded, in train mode, at every step, to the same label each time
    "DYNAT-Inner": Released(
        "dynat_inner",
        lambda nets, x, y, z: F.cross_entropy(nets.student(z), nets.other(x).argmax(1)),
        _dynat,
        other_trains=True,
    ),
    # the guide's clean output is computed anew at every step
    "D2R-CAG": Released("d2r_as_released", lambda nets, x, y, z: _kl(nets.other(x), nets.student(z)), _d2r),
    "AdaAD": Released("adaad", _kl_teacher_student, _adaad),
    "DGAD": Released("dgad", _kl_teacher_student, _dgad),
    # with an attack that has settings per image
    "LAS-PGD-AT": Released("pgd_at_smoothed", _ce_label, _ce_smoothed, weights_too=True),
}

STEPPED = {  # an evaluation's loss, and whether an image stays where it is first misclassified
    **dict.fromkeys(("clean", "fgsm", "pgd"), (cross_entropy, False)),
    "pgd_frozen": (cross_entropy, True),
    "cw": (margin, False),
    "cw_frozen": (margin, True),
}


def flags(net: nn.Module, test: Split, column: AttackSpec) -> str:
    """Which images `net` has right ("1"), in eval mode: clean, FGSM, PGD or C&W in L-inf, the authors' AutoAttack.

    Every column is a run of its own with gradients for the weights too, and a frozen image stays in the batch.

    Raises:
        UserError: the column's attack is none of these.
    """
    x, y = (part[: column.images or None] for part in (to_float(test.images), test.labels))
    craft, size = (_autoattack, len(y)) if column.attack == "autoattack" else (_stepped, column.batch_size)
    batches, generator = zip(x.split(size), y.split(size), strict=True), Generator(x.device).manual_seed(column.seed)
    with mode(net, train=False):
        x_adv = torch.cat([craft(net, *batch, column, generator) for batch in batches])
        with torch.no_grad():
            logits = torch.cat([net(images) for images in x_adv.split(column.batch_size)])
    net.zero_grad(set_to_none=True)
    return "".join("01"[right] for right in (logits.argmax(1) == y).tolist())


def _stepped(net: nn.Module, x: Tensor, y: Tensor, column: AttackSpec, generator: Generator) -> Tensor:
    loss, frozen = choose("attack of the plain path", column.attack, STEPPED)

    def mean_loss(x_adv: Tensor) -> Tensor:
        logits = net(x_adv)
        moving = (logits.argmax(1) == y) | (not frozen)  # the gradient of the others is 0, and they stay
        return (loss(logits, y) * moving).mean()

    if column.attack in ("clean", "fgsm"):
        return attack(mean_loss, x, x, Ball(column.epsilon, column.epsilon, int(column.attack == "fgsm")))
    start = uniform_in_image(x, x.new_tensor(column.epsilon), generator)
    return attack(mean_loss, x, start, Ball(column.epsilon, column.step_size, column.steps))


def _autoattack(net: nn.Module, x: Tensor, y: Tensor, column: AttackSpec, generator: Generator) -> Tensor:
    from pyautoattack import AutoAttack

    with torch.no_grad():
        classes = net(x[:1]).shape[1]
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):  # it seeds the global generators
        authors = AutoAttack(
            net, norm="Linf", eps=column.epsilon, version="standard", device=x.device, seed=column.seed
        )
        authors.attacks_to_run = list(column.stages)
        authors.apgd_targeted.n_target_classes = authors.fab.n_target_classes = min(9, classes - 1)
        return authors.run_standard_evaluation(x, y, batch_size=column.batch_size)[0].detach()
