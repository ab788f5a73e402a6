"""Distillation from a robust teacher: ARD, IAD, RSLAD, AKD, AdaAD, as printed and as their authors released them."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lib import attacks
from lib.attacks.pgd import Objective, PerImage
from lib.losses import cross_entropy, kl
from lib.methods.at import ce_label
from lib.methods.core import Method, Nets, Piecewise, Terms, Weight, constant

Divergence = Callable[[Tensor, Tensor], Tensor]  # (teacher's logits (N, C), student's) -> (N,)


def kl_teacher(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """KL(T(x) || S(x')), T(x) computed once: RSLAD."""
    return PerImage(lambda x_adv, teacher: kl(teacher, nets.student(x_adv)), (constant(nets.teacher, x),))


def kl_teacher_student(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """KL(T(x') || S(x')), the gradient through both networks: AdaAD, DGAD."""
    return PerImage(lambda x_adv: kl(nets.teacher(x_adv), nets.student(x_adv)))


def kl_student_teacher(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """KL(S(x') || T(x')), the gradient through both networks: AdaAD and DGAD as DGAD prints them (eqs. 4, 5)."""
    return PerImage(lambda x_adv: kl(nets.student(x_adv), nets.teacher(x_adv)))


def kl_as_printed(target: Tensor, logits: Tensor) -> Tensor:
    """KL(q || p) (N,), p = softmax(target) the teacher's: the direction of every KL in DGAD (eqs. 1 to 5, 8)."""
    return kl(logits, target)


def ard(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, temperature: float) -> Terms:
    """tau^2 KL(T(x)/tau || S(x')/tau) (Goldblum et al. 2020 with alpha = 1: no label term)."""
    return {"adv": temperature**2 * kl(constant(nets.teacher, x), nets.student(x_adv), temperature)}


def ard_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, temperature: float) -> Terms:
    """ARD's loss divided by the number of classes, and a forward of x whose label term has weight 0."""
    terms = ard(nets, x, x_adv, y, temperature=temperature)
    return {"adv": terms["adv"] / constant(nets.student, x).shape[1]}


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
    student = nets.student(x) if exponent > 0 else student
    return {"teacher": kl(teacher, student_adv), "self": (1 - trust) * kl(student, again)}


def _trust(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    right = constant(nets.teacher, x_adv).softmax(1).gather(1, y[:, None]).squeeze(1)
    return right**exponent, constant(nets.teacher, x)


def rslad(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, adv_weight: float) -> Terms:
    """a KL(T(x) || S(x')) + (1 - a) KL(T(x) || S(x)), a = 5/6 (Zi et al. 2021)."""
    teacher, student, student_adv = constant(nets.teacher, x), nets.student(x), nets.student(x_adv)
    return {"adv": adv_weight * kl(teacher, student_adv), "clean": (1 - adv_weight) * kl(teacher, student)}


def rslad_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, adv_weight: float) -> Terms:
    """RSLAD's loss divided by 10 (its CIFAR-100 code makes up for the 100 classes), x' forwarded before x."""
    teacher, student_adv, student = constant(nets.teacher, x), nets.student(x_adv), nets.student(x)
    return {"adv": adv_weight / 10 * kl(teacher, student_adv), "clean": (1 - adv_weight) / 10 * kl(teacher, student)}


def akd(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, mixing: float) -> Terms:
    """CE(S(x'), a T(x') + (1 - a) onehot(y)) (Maroto et al. 2022)."""
    teacher = constant(nets.teacher, x_adv).softmax(1)
    target = (mixing * teacher).scatter_add(1, y[:, None], torch.full_like(teacher[:, :1], 1 - mixing))
    return {"adv": cross_entropy(nets.student(x_adv), target)}


def adaad(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, adv_weight: float, divergence: Divergence = kl) -> Terms:
    """a KL(T(x') || S(x')) + (1 - a) KL(T(x) || S(x)), a = 1 (Huang et al. 2023; DGAD eq. 4 has S first)."""
    teacher, teacher_adv = constant(nets.teacher, x), constant(nets.teacher, x_adv)
    student, student_adv = constant(nets.student, x, unless=1 - adv_weight), nets.student(x_adv)
    adv, clean = divergence(teacher_adv, student_adv), divergence(teacher, student)
    return {"adv": adv_weight * adv, "clean": (1 - adv_weight) * clean}


def adaad_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, adv_weight: float) -> Terms:
    """AdaAD's CIFAR-10 code: its loss divided by 10, the mean over images *and* classes."""
    return {name: term / 10 for name, term in adaad(nets, x, x_adv, y, adv_weight=adv_weight).items()}


_taught = partial(Method, needs_teacher=True)
_printed = partial(adaad, divergence=kl_as_printed)
_HEAT: dict[str, Weight] = {"temperature": 30.0}
_TRUST: dict[str, Weight] = {"exponent": Piecewise((60 / 200,), (0.0, 0.1))}

METHODS: dict[str, Method] = {
    "ard": _taught("ARD", ce_label, ard, _HEAT, attacks.uniform_in_image),
    "ard_as_released": _taught("ARD (code)", ce_label, ard_as_released, _HEAT, attacks.uniform, "train"),
    "iad": _taught("IAD", ce_label, iad, _TRUST, attacks.uniform_in_image),
    "iad_as_released": _taught("IAD (code)", ce_label, iad_as_released, _TRUST, attacks.uniform, "train"),
    "rslad": _taught("RSLAD", kl_teacher, rslad, {"adv_weight": 5 / 6}),
    "rslad_as_released": _taught("RSLAD (code)", kl_teacher, rslad_as_released, {"adv_weight": 5 / 6}),
    "akd": _taught("AKD", ce_label, akd, {"mixing": 0.5}, attacks.uniform_in_image),
    "adaad": _taught("AdaAD", kl_teacher_student, adaad, {"adv_weight": 1.0}),
    "adaad_as_released": _taught("AdaAD (code, CIFAR-10)", kl_teacher_student, adaad_as_released, {"adv_weight": 1.0}),
    "adaad_kl_as_printed": _taught("AdaAD (KL as printed)", kl_student_teacher, _printed, {"adv_weight": 1.0}),
}
