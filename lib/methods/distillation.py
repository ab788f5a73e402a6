"""The losses that DGAD is compared with, in the paper's form and as their authors released them."""

import torch
from torch import Tensor

from lib.losses import cross_entropy, kl
from lib.methods.core import Nets, Terms


def natural(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
    """CE(S(x), y): training without an attack, the undefended control."""
    return {"clean": cross_entropy(nets.student(x), y)}


def pgd_at(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
    """CE(S(x'), y) (Madry et al. 2018)."""
    return {"adv": cross_entropy(nets.student(x_adv), y)}


def pgd_at_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
    """CE(S(x'), y), then a forward of x that has no loss: it pulls the batch-norm statistics to the clean images."""
    student_adv = nets.student(x_adv)
    with torch.no_grad():
        nets.student(x)
    return {"adv": cross_entropy(student_adv, y)}


def trades(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, trade_off: float) -> Terms:
    """CE(S(x), y) + lambda KL(S(x) || S(x')), gradient into both (Zhang et al. 2019)."""
    student, student_adv = nets.student(x), nets.student(x_adv)
    return {"clean": cross_entropy(student, y), "adv": trade_off * kl(student, student_adv)}


def trades_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, trade_off: float) -> Terms:
    """The same value; S(x) is forwarded again as the KL's target, so batch-norm sees x, x', x."""
    student, student_adv, target = nets.student(x), nets.student(x_adv), nets.student(x)
    return {"clean": cross_entropy(student, y), "adv": trade_off * kl(target, student_adv)}


def ard(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, temperature: float) -> Terms:
    """tau^2 KL(T(x)/tau || S(x')/tau) (Goldblum et al. 2020 with alpha = 1: no label term)."""
    with torch.no_grad():
        teacher = nets.teacher(x)
    return {"adv": temperature**2 * kl(teacher, nets.student(x_adv), temperature)}


def ard_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, temperature: float) -> Terms:
    """ARD's loss divided by the number of classes, and a forward of x whose label term has weight 0."""
    terms = ard(nets, x, x_adv, y, temperature=temperature)
    with torch.no_grad():
        classes = nets.student(x).shape[1]
    return {"adv": terms["adv"] / classes}


def iad(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, exponent: float) -> Terms:
    """A KL(T(x) || S(x')) + (1 - A) KL(S(x) || S(x')), A = T(x')_y^exponent (Zhu et al. 2022).

    The student trusts its teacher as far as that is right on the student's own x'; exponent 0 is full trust.
    """
    trust, teacher = _trust(nets, x, x_adv, y, exponent)
    student, student_adv = nets.student(x), nets.student(x_adv)
    return {"teacher": trust * kl(teacher, student_adv), "self": (1 - trust) * kl(student, student_adv)}


def iad_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, exponent: float) -> Terms:
    """IAD-I's code: the teacher's term is not weighted by A; batch-norm sees x', x', x, and x again once A counts."""
    trust, teacher = _trust(nets, x, x_adv, y, exponent)
    student_adv, again, student = nets.student(x_adv), nets.student(x_adv), nets.student(x)
    if exponent > 0:
        student = nets.student(x)
    return {"teacher": kl(teacher, student_adv), "self": (1 - trust) * kl(student, again)}


def _trust(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        right = nets.teacher(x_adv).softmax(1).gather(1, y[:, None]).squeeze(1)
        return right**exponent, nets.teacher(x)


def rslad(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, adv_weight: float) -> Terms:
    """a KL(T(x) || S(x')) + (1 - a) KL(T(x) || S(x)), a = 5/6 (Zi et al. 2021)."""
    with torch.no_grad():
        teacher = nets.teacher(x)
    student, student_adv = nets.student(x), nets.student(x_adv)
    return {"adv": adv_weight * kl(teacher, student_adv), "clean": (1 - adv_weight) * kl(teacher, student)}


def rslad_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, adv_weight: float) -> Terms:
    """RSLAD's loss divided by 10 (its CIFAR-100 code makes up for the 100 classes), x' forwarded before x."""
    with torch.no_grad():
        teacher = nets.teacher(x)
    student_adv, student = nets.student(x_adv), nets.student(x)
    return {"adv": adv_weight / 10 * kl(teacher, student_adv), "clean": (1 - adv_weight) / 10 * kl(teacher, student)}


def akd(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, mixing: float) -> Terms:
    """CE(S(x'), a T(x') + (1 - a) onehot(y)) (Maroto et al. 2022)."""
    with torch.no_grad():
        teacher = nets.teacher(x_adv).softmax(1)
    target = (mixing * teacher).scatter_add(1, y[:, None], torch.full_like(teacher[:, :1], 1 - mixing))
    return {"adv": cross_entropy(nets.student(x_adv), target)}


def adaad(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, adv_weight: float) -> Terms:
    """a KL(T(x') || S(x')) + (1 - a) KL(T(x) || S(x)), a = 1 (Huang et al. 2023; DGAD eq. 4)."""
    with torch.no_grad():
        teacher, teacher_adv = nets.teacher(x), nets.teacher(x_adv)
    with torch.set_grad_enabled(torch.is_grad_enabled() and adv_weight != 1):
        student = nets.student(x)
    student_adv = nets.student(x_adv)
    return {"adv": adv_weight * kl(teacher_adv, student_adv), "clean": (1 - adv_weight) * kl(teacher, student)}


def adaad_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, adv_weight: float) -> Terms:
    """AdaAD's CIFAR-10 code: its loss divided by 10, the mean over images *and* classes."""
    return {name: term / 10 for name, term in adaad(nets, x, x_adv, y, adv_weight=adv_weight).items()}
