"""Adversarial training without a teacher: PGD-AT, TRADES, MART, and FAT, SAT and DART: PGD-AT whose attack may stop."""

from functools import partial

from torch import Tensor

from lib import attacks
from lib.attacks.pgd import Objective, PerImage
from lib.attacks.stopping import UntilConverged, UntilConvergedAsReleased, UntilGap, UntilWrong
from lib.losses import boosted_cross_entropy, cross_entropy, kl, kl_floored, smoothed_cross_entropy
from lib.methods.core import Method, Nets, Piecewise, Ramp, Terms, Weight, constant


def ce_label(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """CE(S(x'), y): PGD-AT, ARD, IAD, AKD."""
    return PerImage(lambda x_adv, y: cross_entropy(nets.student(x_adv), y), (y,))


def kl_clean(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """KL(S(x) || S(x')), S(x) computed once: TRADES."""
    return PerImage(lambda x_adv, clean: kl(clean, nets.student(x_adv)), (constant(nets.student, x),))


def natural(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
    """CE(S(x), y): training without an attack, the undefended control."""
    return {"clean": cross_entropy(nets.student(x), y)}


def pgd_at(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
    """CE(S(x'), y) (Madry et al. 2018)."""
    return {"adv": cross_entropy(nets.student(x_adv), y)}


def pgd_at_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
    """CE(S(x'), y), then a forward of x that has no loss: it pulls the batch-norm statistics to the clean images."""
    student_adv, _ = nets.student(x_adv), constant(nets.student, x)
    return {"adv": cross_entropy(student_adv, y)}


def dart_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, active: float) -> Terms:
    """w CE(S(x'), y), w = 1 in the first epoch and then CE(S(x'), y) itself, detached (DART's code: w in eval mode)."""
    loss = cross_entropy(nets.student(x_adv), y)
    return {"adv": (1 + active * (loss.detach() - 1)) * loss}


def trades(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, trade_off: float) -> Terms:
    """CE(S(x), y) + lambda KL(S(x) || S(x')), gradient into both (Zhang et al. 2019)."""
    student, student_adv = nets.student(x), nets.student(x_adv)
    return {"clean": cross_entropy(student, y), "adv": trade_off * kl(student, student_adv)}


def trades_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, trade_off: float) -> Terms:
    """The same value; S(x) is forwarded again as the KL's target, so batch-norm sees x, x', x."""
    student, student_adv, target = nets.student(x), nets.student(x_adv), nets.student(x)
    return {"clean": cross_entropy(student, y), "adv": trade_off * kl(target, student_adv)}


def pgd_at_smoothed(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, true_share: float) -> Terms:
    """CE(S(x'), t), t = true_share for the true class, the rest of it shared by the others (LAS-AT's code)."""
    return {"adv": smoothed_cross_entropy(nets.student(x_adv), y, true_share)}


def trades_smoothed(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, trade_off: float, true_share: float) -> Terms:
    """CE(S(x), t) + lambda KL(S(x) || S(x')), t as above, gradient into both (Gowal et al. 2020)."""
    student, student_adv = nets.student(x), nets.student(x_adv)
    return {"clean": smoothed_cross_entropy(student, y, true_share), "adv": trade_off * kl(student, student_adv)}


def mart(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, beta: float) -> Terms:
    """BCE(S(x'), y) + beta (1 - S(x)_y) KL(S(x) || S(x')), none detached, the code's constants (Wang et al. 2020)."""
    student, student_adv = nets.student(x), nets.student(x_adv)
    unsure = 1.0000001 - student.softmax(1).gather(1, y[:, None]).squeeze(1)
    divergence = kl_floored(student, student_adv, 1e-12)
    return {"adv": boosted_cross_entropy(student_adv, y), "kl": beta * unsure * divergence}


_uniform = partial(Method, start=attacks.uniform_in_image)
_clipped = partial(Method, start=attacks.gaussian_in_image)
_TRADES: dict[str, Weight] = {"trade_off": 6.0}
_PATIENCE: dict[str, Weight] = {"patience": Piecewise((50 / 120, 90 / 120), (0.0, 1.0, 2.0))}
_GAP: dict[str, Weight] = {"gap": Ramp(30 / 100, 70 / 100, 0.0, 0.4)}
_BOUND: dict[str, Weight] = {"bound": Ramp(0.0, 100 / 120, 0.5, 0.0)}
_dart = partial(Method, objective=ce_label, start=attacks.uniform, criterion_weights=_BOUND)

METHODS: dict[str, Method] = {
    "natural": Method("natural training", None, natural),
    "pgd_at": _clipped("PGD-AT", ce_label, pgd_at),
    "pgd_at_as_released": _clipped("PGD-AT (AdaAD's code)", ce_label, pgd_at_as_released),
    "pgd_at_uniform": _uniform("PGD-AT (uniform start)", ce_label, pgd_at),
    "pgd_at_uniform_as_released": _uniform("PGD-AT (LAS-AWP's code)", ce_label, pgd_at_as_released),
    "rice_pgd_at_as_released": _uniform("PGD-AT (Rice's code)", ce_label, pgd_at_as_released, attack_mode="train"),
    "cat_pgd_at_as_released": Method("PGD-AT (CAT's code)", ce_label, pgd_at, {}, attacks.uniform, attack_mode="train"),
    "trades": Method("TRADES", kl_clean, trades, _TRADES),
    "trades_as_released": Method("TRADES (code)", kl_clean, trades_as_released, _TRADES),
    "pgd_at_smoothed": _uniform("PGD-AT (smoothed labels)", ce_label, pgd_at_smoothed, {"true_share": 0.7}),
    "trades_smoothed": _uniform("TRADES (smoothed labels)", kl_clean, trades_smoothed, {**_TRADES, "true_share": 0.91}),
    "mart": Method("MART", ce_label, mart, {"beta": 6.0}),
    "fat": _uniform("FAT", ce_label, pgd_at, criterion=UntilWrong, criterion_weights=_PATIENCE),
    "fat_as_released": _uniform(
        "FAT (code)", ce_label, pgd_at, jitter=attacks.gaussian, criterion=UntilWrong, criterion_weights=_PATIENCE
    ),
    "sat": _uniform("SAT", ce_label, pgd_at, criterion=UntilGap, criterion_weights=_GAP),
    "dart": _dart("DART", loss=pgd_at, criterion=UntilConverged),
    "dart_as_released": _dart(
        "DART (code)",
        loss=dart_as_released,
        weights={"active": Piecewise((1 / 120,), (0.0, 1.0))},
        criterion=UntilConvergedAsReleased,
    ),
}
