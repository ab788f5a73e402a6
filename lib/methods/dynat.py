"""LBGAT and DYNAT: a guide trained beside the target gives it logits to follow, or labels, in the attack too (Inner).

DYNAT-AWP and DYNAT-Inner-AWP are these with a `trade_off` and a weight perturbation for TRADES' loss around them. The
student forwards x also where no term needs it, which moves its batch-norm statistics as in the authors' code.
"""

from functools import partial

from torch import Tensor

from lib import attacks
from lib.losses import cross_entropy, kl, logit_mse, smoothed_cross_entropy
from lib.methods.at import ce_label, kl_clean
from lib.methods.core import Method, Nets, Piecewise, Terms, Weight, constant
from lib.methods.reweighting import MAIL_AT, CountIterates, gair, mail


def lbgat(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, trade_off: float) -> Terms:
    """CE(G(x), y) + (1/C) ||S(x') - G(x)||^2 + lambda KL(S(x) || S(x')), G the guide (Cui et al. 2021).

    The square is of logits, and nothing is detached: the guide is pulled to the student too.
    """
    student_adv, student = nets.student(x_adv), constant(nets.student, x, unless=trade_off)
    guide, adv = nets.guide(x), trade_off * kl(student, student_adv)
    return {"guide": cross_entropy(guide, y), "mse": logit_mse(student_adv, guide), "adv": adv}


def lbgat_frozen(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
    """(1/C) ||S(x') - T(x)||^2, T a guide that was trained beforehand and stays as it is (D2R's Fig. 2a)."""
    teacher, student_adv, _ = constant(nets.teacher, x), nets.student(x_adv), constant(nets.student, x)
    return {"mse": logit_mse(student_adv, teacher)}


def guides_answer(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    """l = argmax G(x): the dynamic label (N,) (DYNAT eq. 3)."""
    return constant(nets.guide, x).argmax(1)


def dynat(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, target_weight: float, trade_off: float) -> Terms:
    """CE(G(x), y) + beta CE(S(x'), l) + alpha KL(S(x) || S(x')), l = argmax G(x) (DYNAT eq. 6).

    beta is `target_weight`, alpha `trade_off`. No gradient crosses between the networks: the label is an argmax.
    """
    student_adv, student = nets.student(x_adv), constant(nets.student, x, unless=trade_off)
    guide, trades = nets.guide(x), trade_off * kl(student, student_adv)
    adv = target_weight * cross_entropy(student_adv, guide.argmax(1))
    return {"guide": cross_entropy(guide, y), "adv": adv, "trades": trades}


def dynat_smoothed(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, true_share: float) -> Terms:
    """CE(G(x), y) + CE(S(x'), t), t = true_share for class l, the rest of it shared by the others.

    Our reading of "label smoothing 0.2" in DYNAT's hybrid with GAIRAT, whose code is not public: true_share 0.8. Were
    the 0.2 shared by all C classes it would be 0.8 + 0.2 / C, 0.82 on CIFAR-10.
    """
    student_adv, _, guide = nets.student(x_adv), constant(nets.student, x), nets.guide(x)
    adv = smoothed_cross_entropy(student_adv, guide.argmax(1), true_share)
    return {"guide": cross_entropy(guide, y), "adv": adv}


_beside = partial(Method, trains_guide=True)
_inner = partial(_beside, guide_mode="train_at_every_step", attack_label=guides_answer)
_DYNAT: dict[str, Weight] = {"target_weight": 1.0, "trade_off": 0.0}
_GAIR: dict[str, Weight] = {"true_share": 0.8, "lam": -1.0, "active": Piecewise((69 / 120,), (0.0, 1.0))}

METHODS: dict[str, Method] = {
    "lbgat": _beside("LBGAT", kl_clean, lbgat, {"trade_off": 0.0}),
    "lbgat_frozen": Method("LBGAT (guide frozen)", kl_clean, lbgat_frozen, needs_teacher=True, guided=True),
    "mail_mse": _beside("MAIL (MSE)", ce_label, mail(lbgat, "mse"), {"trade_off": 0.0, **MAIL_AT}),
    "dynat": _beside("DYNAT", kl_clean, dynat, _DYNAT),
    "dynat_inner": _inner("DYNAT-Inner", ce_label, dynat, _DYNAT),
    "dynat_awp": _beside("DYNAT (AWP's code)", kl_clean, dynat, _DYNAT, guide_forwards=2),
    "dynat_inner_awp": _inner("DYNAT-Inner (AWP's code)", ce_label, dynat, _DYNAT, guide_forwards=2),
    "dynat_inner_gairat": _inner(
        "DYNAT-Inner-GAIRAT", ce_label, gair(dynat_smoothed), _GAIR, attacks.uniform_in_image, criterion=CountIterates
    ),
    "dynat_mail_at": _beside("DYNAT-AT-MAIL", ce_label, mail(dynat), {**_DYNAT, **MAIL_AT}),
    "dynat_mail_inner": _inner("DYNAT-MAIL-Inner", ce_label, mail(dynat, label=guides_answer), {**_DYNAT, **MAIL_AT}),
}
