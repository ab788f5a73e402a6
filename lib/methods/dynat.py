"""DYNAT: the label is the answer of a guide that is trained alongside, in the loss and (Inner) in the attack.

DYNAT-AWP and DYNAT-Inner-AWP are these with a `trade_off` and a weight perturbation for TRADES' loss around them.
"""

import torch
from torch import Tensor

from lib.losses import cross_entropy, kl, smoothed_cross_entropy
from lib.methods.core import Nets, Terms, counts


def guides_answer(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    """l = argmax G(x): the dynamic label (N,) (DYNAT eq. 7)."""
    with torch.no_grad():
        return nets.guide(x).argmax(1)


def dynat(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, target_weight: float, trade_off: float) -> Terms:
    """CE(G(x), y) + beta CE(S(x'), l) + alpha KL(S(x) || S(x')), l = argmax G(x) (DYNAT eq. 3).

    beta is `target_weight`, alpha `trade_off`. No gradient crosses between the networks: the label is an argmax. x is
    forwarded by the student also where alpha is 0, which moves its batch-norm statistics as in the authors' code.
    """
    student_adv = nets.student(x_adv)
    with torch.set_grad_enabled(counts(trade_off)):
        student = nets.student(x)
    guide = nets.guide(x)
    return {
        "guide": cross_entropy(guide, y),
        "adv": target_weight * cross_entropy(student_adv, guide.argmax(1)),
        "trades": trade_off * kl(student, student_adv),
    }


def dynat_smoothed(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, true_share: float) -> Terms:
    """CE(G(x), y) + CE(S(x'), t), t = true_share for class l, the rest of it shared by the others.

    Our reading of "label smoothing" in DYNAT's hybrid with GAIRAT, whose code is not public; x as in `dynat`.
    """
    student_adv = nets.student(x_adv)
    with torch.no_grad():
        nets.student(x)
    guide = nets.guide(x)
    return {
        "guide": cross_entropy(guide, y),
        "adv": smoothed_cross_entropy(student_adv, guide.argmax(1), true_share),
    }
