"""DYNAT: the label is the answer of a guide that is trained alongside, in the loss and (Inner) in the attack."""

import torch
from torch import Tensor

from lib.losses import cross_entropy, kl, smoothed_target
from lib.methods.core import Nets, Terms


def guides_answer(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    """l = argmax g(x): the dynamic label (N,) that the inner optimisation uses (DYNAT eq. 7)."""
    with torch.no_grad():
        return nets.guide(x).argmax(1)


def dynat(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, target_weight: float, trade_off: float | Tensor) -> Terms:
    """CE(g(x), y) + beta CE(f(x'), l) + alpha KL(f(x) || f(x')), l = argmax g(x) (DYNAT eq. 3).

    beta is `target_weight`, alpha `trade_off`. No gradient crosses between the networks: the label is an argmax. x is
    forwarded also where alpha is 0, as in the code: it moves the target's batch-norm statistics.
    """
    adv, student, guide = nets.student(x_adv), nets.student(x), nets.guide(x)
    terms = {
        "guide": cross_entropy(guide, y),
        "adv": target_weight * cross_entropy(adv, guide.argmax(1)),
    }
    return terms | ({} if _is_zero(trade_off) else {"trades": trade_off * kl(student, adv)})


def dynat_smoothed(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, true_share: float) -> Terms:
    """CE(g(x), y) + CE(f(x'), smoothed l): the loss that GAIRAT's weights go on in DYNAT's hybrid."""
    adv, _, guide = nets.student(x_adv), nets.student(x), nets.guide(x)
    target = smoothed_target(guide.argmax(1), guide.shape[1], true_share)
    return {"guide": cross_entropy(guide, y), "adv": cross_entropy(adv, target)}


def _is_zero(weight: float | Tensor) -> bool:
    return not isinstance(weight, Tensor) and weight == 0
