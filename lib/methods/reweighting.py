"""Losses with a weight per image: GAIRAT (Zhang et al. 2021) and MAIL (Wang et al. 2021), as wrappers of any loss."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lib import attacks
from lib.attacks.stopping import StoppingCriterion
from lib.losses import margin
from lib.methods.at import ce_label, kl_clean, pgd_at, pgd_at_smoothed, trades
from lib.methods.core import Method, Nets, Piecewise, Recorder, Terms, Weight

Loss = Callable[..., Terms]


@dataclass(eq=False)
class CountIterates(StoppingCriterion):
    """GAIRAT's kappa and K per image: at how many iterates, bar the last, it was still right, and how many it had."""

    def __post_init__(self) -> None:
        self.kappa, self.steps_seen = torch.zeros_like(self.y), torch.zeros_like(self.y)

    def __call__(self, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        self.steps_seen[index] += 1
        self.kappa[index] += self.right_at(index).long()
        return super().__call__(x_adv, gradient, index)

    def observed(self) -> dict[str, Tensor]:
        """kappa and steps_seen = K, (N,) whole numbers, kappa <= steps_seen."""
        return {"kappa": self.kappa, "steps_seen": self.steps_seen}


def gair(loss: Loss, term: str = "adv") -> Loss:
    """`loss` with one term times GAIRAT's weight of each image (Zhang et al. 2021), from `CountIterates`.

    Right is what the attack's label says, so the method's `attack_label` where it has one. `active` is 0 during the
    burn-in, when every weight is 1, and 1 afterwards: the code's "from epoch 60" counts from 1, index 59 of 120.
    """

    def weighted(
        nets: Nets, *batch: Tensor, kappa: Tensor, steps_seen: Tensor, lam: float, active: float, **weights: float
    ) -> Terms:
        terms = loss(nets, *batch, **weights)
        return _times(terms, term, geometry_weight(kappa, steps_seen, lam), active)

    return weighted


def mail(loss: Loss, term: str = "adv", label: Callable[[Nets, Tensor, Tensor], Tensor] | None = None) -> Loss:
    """`loss` with one term times MAIL's weight of each image (Wang et al. 2021), from S(x') as the loss forwarded it.

    The margin is that of y, or of `label`, which sees the outputs that the loss saw. `active` is as for GAIRAT.
    """

    def weighted(
        nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, bias: float, slope: float, active: float, **weights: float
    ) -> Terms:
        student, guide = Recorder(nets.student), Recorder(nets.guide)
        terms = loss(replace(nets, student=student, guide=guide), x, x_adv, y, **weights)
        outputs = replace(nets, student=student.output_of, guide=guide.output_of)
        target = label(outputs, x, y) if label else y
        return _times(terms, term, margin_weight(outputs.student(x_adv), target, bias, slope), active)

    return weighted


def geometry_weight(kappa: Tensor, steps_seen: Tensor, lam: float) -> Tensor:
    """(1 + tanh(lam + 5 (1 - 2 kappa / K))) / 2 (GAIRAT), as the sigmoid it is, brought to mean 1 over the batch."""
    share = kappa / steps_seen.clamp_min(1)
    weight = (2 * (lam + 5 * (1 - 2 * share))).sigmoid()
    return weight / weight.mean()


def margin_weight(logits: Tensor, y: Tensor, bias: float, slope: float) -> Tensor:
    """3 sigmoid(slope (max_{j != y} p_j - p_y + bias)) (N,), detached; 3 is the authors' constant (MAIL)."""
    return 3 * (slope * (margin(logits.softmax(1), y) + bias)).sigmoid().detach()


def _times(terms: Terms, name: str, weight: Tensor, active: float) -> Terms:
    return {**terms, name: (1 + active * (weight - 1)) * terms[name]}


GAIR: dict[str, Weight] = {"lam": -1.0, "active": Piecewise((59 / 120,), (0.0, 1.0))}
MAIL: dict[str, Weight] = {"active": Piecewise((76 / 120,), (0.0, 1.0))}
MAIL_AT: dict[str, Weight] = {"bias": -0.5, "slope": 10.0, **MAIL}
_counted = partial(Method, start=attacks.uniform_in_image, criterion=CountIterates)

METHODS: dict[str, Method] = {
    "gairat": _counted("GAIRAT", ce_label, gair(pgd_at), GAIR),
    "gairat_smoothed": _counted(
        "GAIRAT (smoothed labels)", ce_label, gair(pgd_at_smoothed), {"true_share": 0.8, **GAIR}
    ),
    "mail_at": Method("MAIL-AT", ce_label, mail(pgd_at), MAIL_AT),
    "mail_trades": Method("MAIL-TRADES", kl_clean, mail(trades), {"trade_off": 5.0, "bias": 0.0, "slope": 2.0, **MAIL}),
}
