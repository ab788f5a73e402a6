"""A method is a row: what the attack maximises, what training minimises, and the recipe that goes with them.

Losses return named per-image terms {name: (N,)}; the loop adds them up and takes the mean, once. Forwards stand on top,
in the order the recipe wants, because each moves the student's batch-norm statistics. S is the student, T the frozen
teacher, x' the adversarial image, KL(T || S) the divergence from the teacher's distribution.

`*_as_released` is the authors' public code where it differs from the paper's formula in what it computes.
`params/choices/dgad.yaml` says what was chosen where neither of them decides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lib import attacks
from lib.errors import UserError
from lib.losses import cross_entropy, kl, softmax_distance, softmax_mse, swap_labels

Net = Callable[[Tensor], Tensor]
Terms = dict[str, Tensor]


def _no_teacher(x: Tensor) -> Tensor:
    raise UserError("this method needs a teacher, and none was given")


@dataclass(frozen=True)
class Nets:
    """The networks of a step: the student in training, and the frozen teacher where the method has one."""

    student: Net
    teacher: Net = _no_teacher


@dataclass(frozen=True)
class FromProgress:
    """A weight that is `before` until `share` of the training has passed, and `after` from then on."""

    share: float
    before: float
    after: float


@dataclass(frozen=True)
class NominalBatch:
    """A weight that is the schedule's batch size, also where the last batch is smaller."""


Weight = float | FromProgress | NominalBatch


def weight_at(weight: Weight, progress: float, batch_size: int) -> float:
    """The number that a weight is at `progress` in [0, 1] of a training with this batch size."""
    if isinstance(weight, FromProgress):
        return weight.after if progress >= weight.share else weight.before
    return float(batch_size) if isinstance(weight, NominalBatch) else weight


@dataclass(frozen=True)
class Method:
    """One way to train: `loss` is called as loss(nets, x, x_adv, y, **weights) and returns {term: (N,)}.

    `objective(nets, x, y)` gives the function x' -> (N,) that the attack maximises; None trains on clean images.
    `attack_mode` is the student's mode while the attack looks at it; the loss always sees it in train mode.
    """

    title: str
    objective: Callable[[Nets, Tensor, Tensor], attacks.Objective] | None
    loss: Callable[..., Terms]
    weights: Mapping[str, Weight] = field(default_factory=dict)
    start: attacks.Start = attacks.gaussian
    attack_mode: Literal["eval", "train"] = "eval"
    needs_teacher: bool = False


# --- what the attack maximises -----------------------------------------------------------------------------------


def fool_label(nets: Nets, x: Tensor, y: Tensor) -> attacks.Objective:
    """CE(S(x'), y): PGD-AT, ARD, IAD, AKD."""
    return lambda x_adv: cross_entropy(nets.student(x_adv), y)


def leave_clean(nets: Nets, x: Tensor, y: Tensor) -> attacks.Objective:
    """KL(S(x) || S(x')), S(x) computed once: TRADES."""
    with torch.no_grad():
        clean = nets.student(x)
    return lambda x_adv: kl(clean, nets.student(x_adv))


def leave_teacher(nets: Nets, x: Tensor, y: Tensor) -> attacks.Objective:
    """KL(T(x) || S(x')), T(x) computed once: RSLAD."""
    with torch.no_grad():
        teacher = nets.teacher(x)
    return lambda x_adv: kl(teacher, nets.student(x_adv))


def part_from_teacher(nets: Nets, x: Tensor, y: Tensor) -> attacks.Objective:
    """KL(T(x') || S(x')), the gradient through both networks: AdaAD, DGAD."""
    return lambda x_adv: kl(nets.teacher(x_adv), nets.student(x_adv))


# --- what training minimises -------------------------------------------------------------------------------------


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
    student, student_adv = nets.student(x), nets.student(x_adv)
    return {"adv": adv_weight * kl(teacher_adv, student_adv), "clean": (1 - adv_weight) * kl(teacher, student)}


def adaad_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, adv_weight: float) -> Terms:
    """AdaAD's CIFAR-10 code: its loss divided by 10, the mean over images *and* classes."""
    return {name: term / 10 for name, term in adaad(nets, x, x_adv, y, adv_weight=adv_weight).items()}


def dgad(
    nets: Nets,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    *,
    beta: float,
    consistency: Callable[[Tensor, Tensor], Tensor] = softmax_mse,
) -> Terms:
    """ST: KL(swap T(x) || S(x)); AT: KL(swap T(x') || S(x')); all: beta (1/C)||S(x) - S(x')||^2 (DGAD eqs. 5, 7).

    ST are the images whose clean view the teacher gets wrong (MAP); `swap` puts the true class on top (ELS).
    """
    clean, adv, pcr, wrong = _dgad_parts(nets, x, x_adv, y, consistency)
    return {"clean": wrong * clean, "adv": ~wrong * adv, "pcr": beta * pcr}


def dgad_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, beta: float, nominal: float) -> Terms:
    """(n/B) mean_ST KL + ((B - n)/B) mean_AT KL + beta PCR, B the nominal batch size: differs on a partial batch.

    n is the number of ST images. Without any AT image its mean is 0 here; the released code divides by zero.
    """
    clean, adv, pcr, wrong = _dgad_parts(nets, x, x_adv, y)
    per_clean, per_adv = len(y) / nominal, _adv_share(wrong, nominal)
    return {"clean": per_clean * wrong * clean, "adv": per_adv * ~wrong * adv, "pcr": beta * pcr}


def dgad_mobilenet_as_released(
    nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, beta: float, nominal: float
) -> Terms:
    """1/2 [(n/B) L_ST + (B - n)/B] L_AT + beta PCR: a bracket of the MobileNetV2 branch closes early.

    The clean loss L_ST multiplies the adversarial one instead of being added. Sums and means as in `dgad_as_released`.
    """
    clean, adv, pcr, wrong = _dgad_parts(nets, x, x_adv, y)
    n, b = wrong.sum(), len(y)
    mean_clean = (wrong * clean).sum() / n.clamp_min(1)
    bracket = (n / nominal) * mean_clean + (nominal - n) / nominal
    return {"adv": 0.5 * bracket * (b / (b - n).clamp_min(1)) * ~wrong * adv, "pcr": beta * pcr}


def _adv_share(wrong: Tensor, nominal: float) -> Tensor:
    """What one AT image weighs in a mean over the batch: b (B - n) / (B (b - n))."""
    n, b = wrong.sum(), len(wrong)
    return b * (nominal - n) / (nominal * (b - n).clamp_min(1))


def _dgad_parts(
    nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, consistency: Callable[[Tensor, Tensor], Tensor] = softmax_mse
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per image: the clean KL, the adversarial KL, the consistency term, and whether the teacher errs on x."""
    with torch.no_grad():
        teacher, teacher_adv = nets.teacher(x), nets.teacher(x_adv)
    student, student_adv = nets.student(x), nets.student(x_adv)
    wrong = teacher.argmax(1) != y
    clean = kl(swap_labels(teacher, y), student)
    adv = kl(swap_labels(teacher_adv, y), student_adv)
    return clean, adv, consistency(student, student_adv), wrong


# --- the table ---------------------------------------------------------------------------------------------------

_distil = partial(Method, needs_teacher=True)
_IAD = {"exponent": FromProgress(60 / 200, before=0.0, after=0.1)}

METHODS: dict[str, Method] = {
    "natural": Method("natural training", None, natural),
    "pgd_at": Method("PGD-AT", fool_label, pgd_at, start=attacks.gaussian_in_image),
    "pgd_at_as_released": Method(
        "PGD-AT (AdaAD's code)", fool_label, pgd_at_as_released, start=attacks.gaussian_in_image
    ),
    "trades": Method("TRADES", leave_clean, trades, {"trade_off": 6.0}),
    "trades_as_released": Method("TRADES (code)", leave_clean, trades_as_released, {"trade_off": 6.0}),
    "ard": _distil("ARD", fool_label, ard, {"temperature": 30.0}, start=attacks.uniform_in_image),
    "ard_as_released": _distil(
        "ARD (code)", fool_label, ard_as_released, {"temperature": 30.0}, start=attacks.uniform, attack_mode="train"
    ),
    "iad": _distil("IAD", fool_label, iad, _IAD, start=attacks.uniform_in_image),
    "iad_as_released": _distil(
        "IAD (code)", fool_label, iad_as_released, _IAD, start=attacks.uniform, attack_mode="train"
    ),
    "rslad": _distil("RSLAD", leave_teacher, rslad, {"adv_weight": 5 / 6}),
    "rslad_as_released": _distil("RSLAD (code)", leave_teacher, rslad_as_released, {"adv_weight": 5 / 6}),
    "akd": _distil("AKD", fool_label, akd, {"mixing": 0.5}, start=attacks.uniform_in_image),
    "adaad": _distil("AdaAD", part_from_teacher, adaad, {"adv_weight": 1.0}),
    "adaad_as_released": _distil("AdaAD (code, CIFAR-10)", part_from_teacher, adaad_as_released, {"adv_weight": 1.0}),
    "dgad": _distil("DGAD", part_from_teacher, dgad, {"beta": 5.0}),
    "dgad_as_printed": _distil(
        "DGAD (PCR as printed)", part_from_teacher, partial(dgad, consistency=softmax_distance), {"beta": 5.0}
    ),
    "dgad_as_released": _distil(
        "DGAD (code)", part_from_teacher, dgad_as_released, {"beta": 5.0, "nominal": NominalBatch()}
    ),
    "dgad_mobilenet_as_released": _distil(
        "DGAD (code, MobileNetV2)",
        part_from_teacher,
        dgad_mobilenet_as_released,
        {"beta": 10.0, "nominal": NominalBatch()},
    ),
}
