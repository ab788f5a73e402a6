"""DGAD (Park & Min 2024): its loss, its pieces one by one, and the forms its released code has."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from lib.losses import kl, mix_labels, smooth_labels, softmax_distance, softmax_mse, swap_labels
from lib.methods.core import Method, Nets, NominalBatch, Terms, Weight, constant
from lib.methods.distillation import Divergence, kl_as_printed, kl_student_teacher, kl_teacher_student

Rule = Callable[[Tensor, Tensor], Tensor]  # (teacher's logits (N, C), y (N,)) -> the logits (N, C) to learn from


def dgad(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, beta: float, **rules: Rule) -> Terms:
    """ST: KL(st(T(x)) || S(x)); AT: KL(at(T(x')) || S(x')); all: beta (1/C)||S(x) - S(x')||^2.

    DGAD eqs. 5 to 9 (MAP, ELS, PCR), the KL turned and the square taken as in its code.
    ST are the images whose clean view the teacher gets wrong (MAP), AT the others. `rules` are those of `dgad_parts`.
    """
    clean, adv, pcr, wrong = dgad_parts(nets, x, x_adv, y, **rules)
    return {"clean": wrong * clean, "adv": ~wrong * adv, "pcr": beta * pcr}


def dgad_parts(
    nets: Nets,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    st: Rule = swap_labels,
    at: Rule = swap_labels,
    consistency: Divergence = softmax_mse,
    divergence: Divergence = kl,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per image (N,): the clean KL, the adversarial KL, the consistency term, and whether the teacher errs on x.

    `st` and `at` are what is done to the teacher's answers: `swap_labels` is ELS (DGAD eqs. 6, 7), the ablation has
    other rules. `divergence` takes the teacher's logits first.
    """
    teacher, teacher_adv = constant(nets.teacher, x), constant(nets.teacher, x_adv)
    student, student_adv = nets.student(x), nets.student(x_adv)
    wrong = teacher.argmax(1) != y
    clean, adv = divergence(st(teacher, y), student), divergence(at(teacher_adv, y), student_adv)
    return clean, adv, consistency(student, student_adv), wrong


def as_taught(logits: Tensor, y: Tensor) -> Tensor:
    """The teacher's answer as it is: MAP without ELS."""
    return logits


def dgad_relabelled(
    nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, beta: float, share: float, relabel: Callable[..., Tensor]
) -> Terms:
    """DGAD with `smooth_labels` or `mix_labels` where the teacher errs, in place of swapping (its Table 3)."""
    rule = partial(relabel, share=share)
    return dgad(nets, x, x_adv, y, beta=beta, st=rule, at=rule)


def adaad_els(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
    """KL(swap T(x') || S(x')) for every image: ELS without MAP (DGAD's Table 2); x is forwarded for batch-norm only."""
    return {"adv": dgad_parts(nets, x, x_adv, y)[1]}


def dgad_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, beta: float, nominal: float) -> Terms:
    """(n/B) mean_ST KL + ((B - n)/B) mean_AT KL + beta PCR, B the nominal batch size: differs on a partial batch.

    n is the number of ST images. Without any AT image its mean is 0 here; the released code divides by zero.
    """
    clean, adv, pcr, wrong = dgad_parts(nets, x, x_adv, y)
    n, b = wrong.sum(), len(y)
    per_adv = b * (nominal - n) / (nominal * (b - n).clamp_min(1))
    return {"clean": b / nominal * wrong * clean, "adv": per_adv * ~wrong * adv, "pcr": beta * pcr}


def dgad_mobilenet_as_released(
    nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, beta: float, nominal: float
) -> Terms:
    """1/2 [(n/B) L_ST + (B - n)/B] L_AT + beta PCR: a bracket of the MobileNetV2 branch closes early.

    The clean loss L_ST multiplies the adversarial one instead of being added. Sums and means as in `dgad_as_released`.
    """
    clean, adv, pcr, wrong = dgad_parts(nets, x, x_adv, y)
    n, b = wrong.sum(), len(y)
    mean_clean = (wrong * clean).sum() / n.clamp_min(1)
    bracket = (n / nominal) * mean_clean + (nominal - n) / nominal
    return {"adv": 0.5 * bracket * (b / (b - n).clamp_min(1)) * ~wrong * adv, "pcr": beta * pcr}


_taught = partial(Method, objective=kl_teacher_student, needs_teacher=True)
_map, _printed = partial(dgad, st=as_taught, at=as_taught), partial(dgad, consistency=softmax_distance)
_printed_kl = partial(dgad, divergence=kl_as_printed)
_smoothing, _mixing = partial(dgad_relabelled, relabel=smooth_labels), partial(dgad_relabelled, relabel=mix_labels)
_PCR: dict[str, Weight] = {"beta": 5.0}
_NO_PCR: dict[str, Weight] = {"beta": 0.0}
_CODE: dict[str, Weight] = {"beta": 5.0, "nominal": NominalBatch()}
_MOBILE: dict[str, Weight] = {"beta": 10.0, "nominal": NominalBatch()}

METHODS: dict[str, Method] = {
    "dgad": _taught("DGAD", loss=dgad, weights=_PCR),
    "dgad_map": _taught("MAP", loss=_map, weights=_NO_PCR),
    "dgad_map_pcr": _taught("MAP, PCR", loss=_map, weights=_PCR),
    "adaad_els": _taught("ELS(x')", loss=adaad_els),
    "dgad_map_els_at": _taught("MAP, ELS(x'_AT)", loss=partial(dgad, st=as_taught), weights=_NO_PCR),
    "dgad_map_els_st": _taught("MAP, ELS(x_ST)", loss=partial(dgad, at=as_taught), weights=_NO_PCR),
    "dgad_map_els": _taught("MAP, ELS", loss=dgad, weights=_NO_PCR),
    "dgad_smoothing": _taught("DGAD, smoothing", loss=_smoothing, weights={**_PCR, "share": 0.1}),
    "dgad_mixing": _taught("DGAD, mixing", loss=_mixing, weights={**_PCR, "share": 0.5}),
    "dgad_as_printed": _taught("DGAD (PCR as printed)", loss=_printed, weights=_PCR),
    "dgad_kl_as_printed": Method("DGAD (KL as printed)", kl_student_teacher, _printed_kl, _PCR, needs_teacher=True),
    "dgad_as_released": _taught("DGAD (code)", loss=dgad_as_released, weights=_CODE),
    "dgad_mobilenet_as_released": _taught("DGAD (code, MobileNetV2)", loss=dgad_mobilenet_as_released, weights=_MOBILE),
}
