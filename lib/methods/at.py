"""Adversarial training without a teacher: smoothed labels, MART, weights per image, and a guide trained beside it.

FAT, SAT and DART are PGD-AT's loss under a criterion that stops the attack image by image, so they need no loss here.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lib.attacks.stopping import CountRight
from lib.losses import boosted_cross_entropy, cross_entropy, kl, kl_floored, logit_mse, margin, smoothed_cross_entropy
from lib.methods.core import Net, Nets, Terms, counts

Loss = Callable[..., Terms]
Label = Callable[[Nets, Tensor, Tensor], Tensor]  # (nets, x, y) -> (N,), the classes that images count as


def pgd_at_smoothed(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, true_share: float) -> Terms:
    """CE(S(x'), t), t = true_share for the true class, the rest of it shared by the others (LAS-AT's code)."""
    return {"adv": smoothed_cross_entropy(nets.student(x_adv), y, true_share)}


def trades_smoothed(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, trade_off: float, true_share: float) -> Terms:
    """CE(S(x), t) + lambda KL(S(x) || S(x')), t as above, gradient into both (Gowal et al. 2020)."""
    student, student_adv = nets.student(x), nets.student(x_adv)
    return {
        "clean": smoothed_cross_entropy(student, y, true_share),
        "adv": trade_off * kl(student, student_adv),
    }


def mart(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, beta: float) -> Terms:
    """BCE(S(x'), y) + beta (1 - S(x)_y) KL(S(x) || S(x')), the factor not detached (Wang et al. 2020).

    The authors' constants: 1.0000001 in place of 1, and 1e-12 added to S(x') under the KL's logarithm.
    """
    student, student_adv = nets.student(x), nets.student(x_adv)
    unsure = 1.0000001 - student.softmax(1).gather(1, y[:, None]).squeeze(1)
    return {
        "adv": boosted_cross_entropy(student_adv, y),
        "kl": beta * unsure * kl_floored(student, student_adv, 1e-12),
    }


def lbgat(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, trade_off: float) -> Terms:
    """CE(G(x), y) + (1/C) ||S(x') - G(x)||^2 + lambda KL(S(x) || S(x')), G the guide (Cui et al. 2021).

    The square is of logits, and nothing is detached: the guide is pulled to the student too. x is forwarded by the
    student also where lambda is 0, which moves its batch-norm statistics as in the authors' code.
    """
    student_adv = nets.student(x_adv)
    with torch.set_grad_enabled(counts(trade_off)):
        student = nets.student(x)
    guide = nets.guide(x)
    return {
        "guide": cross_entropy(guide, y),
        "mse": logit_mse(student_adv, guide),
        "adv": trade_off * kl(student, student_adv),
    }


def lbgat_frozen(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> Terms:
    """(1/C) ||S(x') - T(x)||^2, T a guide that was trained beforehand and stays as it is (D2R's Fig. 2a).

    x is forwarded by the student as in LBGAT, for batch-norm only.
    """
    with torch.no_grad():
        teacher = nets.teacher(x)
    student_adv = nets.student(x_adv)
    with torch.no_grad():
        nets.student(x)
    return {"mse": logit_mse(student_adv, teacher)}


class CountIterates(CountRight):
    """GAIRAT's kappa and its K: at how many iterates an image was still right, and how many there were.

    K is counted per image, so it is right for any attack, also where every image has steps of its own.
    """

    def __init__(self, x: Tensor, y: Tensor, epsilon: float) -> None:
        super().__init__(x, y, epsilon)
        self.asked = torch.zeros_like(y)

    def goes_on(self, logits: Tensor, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        """All go on; each is counted, and those that are right once more."""
        self.asked[index] += 1
        return super().goes_on(logits, x_adv, gradient, index)

    def observed(self) -> dict[str, Tensor]:
        """kappa and asked, (N,) whole numbers, kappa <= asked."""
        return {**super().observed(), "asked": self.asked}


def gair(loss: Loss, term: str = "adv") -> Loss:
    """`loss` with one term times GAIRAT's weight of each image (Zhang et al. 2021), for a criterion `CountIterates`.

    What counts as right is the criterion's label, so the method's `attack_label` where it has one. `active` is 0 during
    the burn-in, when every weight is 1, and 1 afterwards.
    """

    def weighted(
        nets: Nets,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        *,
        kappa: Tensor,
        asked: Tensor,
        lam: float,
        active: float,
        **weights: float,
    ) -> Terms:
        terms = loss(nets, x, x_adv, y, **weights)
        return _times(terms, term, geometry_weight(kappa, asked, lam), active)

    return weighted


def true_label(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    """y itself."""
    return y


def mail(loss: Loss, term: str = "adv", label: Label = true_label) -> Loss:
    """`loss` with one term times MAIL's weight of each image (Wang et al. 2021), from S(x') as the loss forwarded it.

    The margin is that of `label`, which hears from the networks what they told the loss, without another forward.
    `active` is 0 during the burn-in, when every weight is 1, and 1 afterwards.
    """

    def weighted(
        nets: Nets,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        *,
        bias: float,
        slope: float,
        active: float,
        **weights: float,
    ) -> Terms:
        student, guide = Recorder(nets.student), Recorder(nets.guide)
        terms = loss(replace(nets, student=student, guide=guide), x, x_adv, y, **weights)
        told = label(replace(nets, student=student.answer_to, guide=guide.answer_to), x, y)
        return _times(terms, term, margin_weight(student.answer_to(x_adv), told, bias, slope), active)

    return weighted


def geometry_weight(kappa: Tensor, asked: Tensor, lam: float) -> Tensor:
    """(1 + tanh(lam + 5 (1 - 2 kappa / K))) / 2, brought to mean 1 over the batch (GAIRAT).

    Shapes: kappa and asked = K (N,) whole numbers; returns (N,). Written as the sigmoid it is, which keeps digits where
    tanh is near -1.
    """
    share = kappa / asked.clamp_min(1)
    weight = (2 * (lam + 5 * (1 - 2 * share))).sigmoid()
    return weight / weight.mean()


def margin_weight(logits: Tensor, y: Tensor, bias: float, slope: float) -> Tensor:
    """3 sigmoid(slope (max_{j != y} p_j - p_y + bias)), detached; 3 is the authors' constant (MAIL).

    Shapes: logits (N, C), y (N,); returns (N,).
    """
    return 3 * (slope * (margin(logits.softmax(1), y) + bias)).sigmoid().detach()


class Recorder:
    """A network that remembers what it answered to which images."""

    def __init__(self, net: Net) -> None:
        self.net, self.answers = net, list[tuple[Tensor, Tensor]]()

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        self.answers.append((x, logits.detach()))
        return logits

    def answer_to(self, x: Tensor) -> Tensor:
        """The logits (N, C), detached, of the first forward of this very tensor."""
        return next(logits for images, logits in self.answers if images is x)


def _times(terms: Terms, name: str, weight: Tensor, active: float) -> Terms:
    return {**terms, name: (1 + active * (weight - 1)) * terms[name]}
