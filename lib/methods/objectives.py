"""What the inner attack maximises, per image: objective(nets, x, y) gives the function x' -> (N,)."""

import torch
from torch import Tensor

from lib.attacks.pgd import Objective, PerImage
from lib.losses import cross_entropy, kl
from lib.methods.core import Nets


def ce_label(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """CE(S(x'), y): PGD-AT, ARD, IAD, AKD."""
    return PerImage(lambda x_adv, y: cross_entropy(nets.student(x_adv), y), (y,))


def kl_clean(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """KL(S(x) || S(x')), S(x) computed once: TRADES."""
    with torch.no_grad():
        clean = nets.student(x)
    return PerImage(lambda x_adv, clean: kl(clean, nets.student(x_adv)), (clean,))


def kl_teacher(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """KL(T(x) || S(x')), T(x) computed once: RSLAD."""
    with torch.no_grad():
        teacher = nets.teacher(x)
    return PerImage(lambda x_adv, teacher: kl(teacher, nets.student(x_adv)), (teacher,))


def kl_guide(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """KL(G(x) || S(x')), G(x) computed once: D2R's collaborative adversarial generation as its code has it."""
    with torch.no_grad():
        guide = nets.guide(x)
    return PerImage(lambda x_adv, guide: kl(guide, nets.student(x_adv)), (guide,))


def kl_guide_as_printed(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """KL(S(x') || G(x)), G(x) computed once: the direction that D2R's eq. 4 prints."""
    with torch.no_grad():
        guide = nets.guide(x)
    return PerImage(lambda x_adv, guide: kl(nets.student(x_adv), guide), (guide,))


def kl_teacher_student(nets: Nets, x: Tensor, y: Tensor) -> Objective:
    """KL(T(x') || S(x')), the gradient through both networks: AdaAD, DGAD."""
    return PerImage(lambda x_adv: kl(nets.teacher(x_adv), nets.student(x_adv)))
