"""D2R: a guide and a target trained together, every coupling term moving both."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lib.attacks.pgd import Objective, PerImage
from lib.losses import cross_entropy, kl, logit_mse
from lib.methods.at import kl_clean
from lib.methods.core import Method, Nets, Terms, Weight, constant

Divergence = Callable[[Tensor, Tensor], Tensor]  # logits (N, C) twice -> (N,)


def kl_guide(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """KL(G(x) || S(x')), G(x) computed once: D2R's collaborative adversarial generation as its code has it."""
    return PerImage(lambda x_adv, guide: kl(guide, nets.student(x_adv)), (constant(nets.guide, x),))


def kl_guide_as_printed(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """KL(S(x') || G(x)), G(x) computed once: the direction that D2R's eq. 4 prints."""
    return PerImage(lambda x_adv, guide: kl(nets.student(x_adv), guide), (constant(nets.guide, x),))


def kl_mean(target: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) / C: D2R's weights 30 and 20 go with a mean over the classes; 3 and 2 would with KL, where C = 10."""
    return kl(target, logits) / target.shape[1]


def kl_mean_as_released(target: Tensor, logits: Tensor) -> Tensor:
    """(1/C) sum_c p_c (log(p_c + 1e-5) - log q_c), p = softmax(target), q = softmax(logits)."""
    p = target.softmax(1)
    return (p * ((p + 1e-5).log() - logits.log_softmax(1))).mean(1)


def of_batch(difference: Tensor) -> Tensor:
    """(N,) whose mean is |mean(difference)|: each image's own difference, times the sign of the batch's mean."""
    return difference * difference.mean().detach().sign()


def d2r(
    nets: Nets,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    *,
    divergence: Divergence = kl_mean,
    absolute: Callable[[Tensor], Tensor] = torch.abs,
    **weights: float,
) -> Terms:
    """lambda CE(G(x), y) + MSE(S(x'), G(x)) + alpha KL(G(x) || S(x')) + beta |KL(S(x) || G(x)) - KL(G(x) || S(x))|.

    D2R eqs. 1 and 2 as printed, with the expectation outside of |.|: every image has its own absolute value. lambda,
    alpha and beta are the weights of `weighted`. Nothing is detached: every term but the first moves both networks.
    ADG is beta = 0.
    """
    student_adv, student, guide = nets.student(x_adv), nets.student(x), nets.guide(x)
    adv, skl = divergence(guide, student_adv), absolute(divergence(student, guide) - divergence(guide, student))
    return weighted(cross_entropy(guide, y), logit_mse(student_adv, guide), adv, skl, **weights)


def d2r_as_released(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, **weights: float) -> Terms:
    """D2R with alpha KL(S(x') || G(x)) in place of the reverse, |.| `of_batch`, and p log(p + 1e-5) for p log p."""
    student_adv, student, guide = nets.student(x_adv), nets.student(x), nets.guide(x)
    adv = kl_mean_as_released(student_adv, guide)
    skl = of_batch(kl_mean_as_released(student, guide) - kl_mean_as_released(guide, student))
    return weighted(cross_entropy(guide, y), logit_mse(student_adv, guide), adv, skl, **weights)


def d2r_one_sided(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, **weights: float) -> Terms:
    """D2R as its Remark has it: KL(S || G) - KL(G || S) moves the target alone where positive, else the guide alone."""
    student_adv, student, guide = nets.student(x_adv), nets.student(x), nets.guide(x)
    positive = (kl_mean(student, guide) - kl_mean(guide, student)).mean() > 0
    s, g = (student, guide.detach()) if positive else (student.detach(), guide)
    adv, skl = kl_mean(guide, student_adv), of_batch(kl_mean(s, g) - kl_mean(g, s))
    return weighted(cross_entropy(guide, y), logit_mse(student_adv, guide), adv, skl, **weights)


def weighted(
    guide: Tensor, mse: Tensor, adv: Tensor, skl: Tensor, *, guide_weight: float, adv_weight: float, skl_weight: float
) -> Terms:
    """lambda guide + mse + alpha adv + beta skl."""
    return {"guide": guide_weight * guide, "mse": mse, "adv": adv_weight * adv, "skl": skl_weight * skl}


_D2R: dict[str, Weight] = {"guide_weight": 1.0, "adv_weight": 30.0, "skl_weight": 20.0}
_beside = partial(Method, weights=_D2R, trains_guide=True, beside_class_means=("guide_weight",))
_cag = partial(_beside, guide_mode="eval")

METHODS: dict[str, Method] = {
    "d2r": _cag("D2R-CAG", kl_guide_as_printed, d2r),
    "d2r_as_released": _cag("D2R-CAG (code)", kl_guide, d2r_as_released),
    "d2r_summed": _cag("D2R-CAG (sums over classes)", kl_guide_as_printed, partial(d2r, divergence=kl)),
    "d2r_one_sign": _cag("D2R-CAG (one sign per batch)", kl_guide_as_printed, partial(d2r, absolute=of_batch)),
    "d2r_one_sided": _cag("D2R-CAG (one side per batch)", kl_guide_as_printed, d2r_one_sided),
    "d2r_no_cag": _beside("D2R", kl_clean, d2r),
    "d2r_no_cag_as_released": _beside("D2R (code)", kl_clean, d2r_as_released),
}
