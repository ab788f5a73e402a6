"""D2R: a guide and a target trained together, every coupling term moving both, and the guide's part in the attack."""

import torch
from torch import Tensor

from lib.attacks import Objective, PerImage
from lib.losses import cross_entropy, kl
from lib.methods.core import Nets, Terms

ENTROPY_FLOOR = 1e-5  # what the released code adds inside the logarithm of the entropy


def leave_guide(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """KL(g(x) || f(x')), g(x) computed once: collaborative adversarial generation as its code has it."""
    with torch.no_grad():
        guide = nets.guide(x)
    return PerImage(lambda x_adv, guide: kl(guide, nets.student(x_adv)), (guide,))


def leave_guide_as_printed(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """KL(f(x') || g(x)): the direction that D2R's eq. 4 prints."""
    with torch.no_grad():
        guide = nets.guide(x)
    return PerImage(lambda x_adv, guide: kl(nets.student(x_adv), guide), (guide,))


def d2r(
    nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, guide_weight: float, adv_weight: float, skl_weight: float
) -> Terms:
    """lambda CE(g(x), y) + MSE(g(x), f(x')) + (alpha / C) KL(g(x) || f(x')) + (beta / C) |KL(f || g) - KL(g || f)|.

    The difference is taken at x, its absolute value over the batch; MSE is of logits, the mean over classes. The
    weights assume divergences that are means over classes, so C divides them. Gradient into both networks everywhere.
    Source: D2R eqs. 1, 2 with the divergences' directions as printed.
    """
    adv, student, guide = nets.student(x_adv), nets.student(x), nets.guide(x)
    classes = guide.shape[1]
    return {
        "guide": guide_weight * cross_entropy(guide, y),
        "mse": (adv - guide).square().mean(1),
        "adv": adv_weight / classes * kl(guide, adv),
        "skl": skl_weight / classes * _of_one_sign(kl(student, guide) - kl(guide, student)),
    }


def d2r_as_released(
    nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, guide_weight: float, adv_weight: float, skl_weight: float
) -> Terms:
    """The adversarial divergence is KL(f(x') || g(x)), and each entropy sum p log p is sum p log(p + 1e-5)."""
    adv, student, guide = nets.student(x_adv), nets.student(x), nets.guide(x)
    classes = guide.shape[1]
    difference = kl_as_released(student, guide) - kl_as_released(guide, student)
    return {
        "guide": guide_weight * cross_entropy(guide, y),
        "mse": (adv - guide).square().mean(1),
        "adv": adv_weight / classes * kl_as_released(adv, guide),
        "skl": skl_weight / classes * _of_one_sign(difference),
    }


def d2r_one_sided(
    nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, guide_weight: float, adv_weight: float, skl_weight: float
) -> Terms:
    """D2R as its Remark tells it: KL(f || g) - KL(g || f) moves the target alone where positive, else the guide alone.

    The printed loss and the code move both networks whatever the sign.
    """
    adv, student, guide = nets.student(x_adv), nets.student(x), nets.guide(x)
    classes = guide.shape[1]
    positive = bool((kl(student, guide) - kl(guide, student)).mean() > 0)
    f, g = (student, guide.detach()) if positive else (student.detach(), guide)
    return {
        "guide": guide_weight * cross_entropy(guide, y),
        "mse": (adv - guide).square().mean(1),
        "adv": adv_weight / classes * kl(guide, adv),
        "skl": skl_weight / classes * _of_one_sign(kl(f, g) - kl(g, f)),
    }


def kl_as_released(target: Tensor, logits: Tensor) -> Tensor:
    """sum_c p_c (log(p_c + 1e-5) - log q_c), p = softmax(target), q = softmax(logits).

    Shapes: target and logits (N, C), both logits; returns (N,).
    """
    p = target.softmax(1)
    return (p * ((p + ENTROPY_FLOOR).log() - logits.log_softmax(1))).sum(1)


def _of_one_sign(difference: Tensor) -> Tensor:
    """Per image (N,), its mean |mean_i difference_i|: one sign for the batch."""
    return torch.sign(difference.mean().detach()) * difference
