"""What looks on during an attack: it decides which images go on, and remembers what a loss wants to know.

criterion = UntilWrong(x, y, epsilon)
net = criterion.listen(net)
x_adv = pgd(PerImage(lambda z, y: cross_entropy(net(z), y), (y,)), x, ..., criterion=criterion)
"""

from collections.abc import Callable

import torch
from torch import Tensor


class StoppingCriterion:
    """Lets every image go on; the others below stop some of them.

    `listen` keeps the logits of the forward that the gradient is taken of, so watching costs no forward.
    """

    def __init__(self, x: Tensor, y: Tensor, epsilon: float | Tensor) -> None:
        self.x, self.y, self.epsilon = x, y, epsilon
        self.logits = torch.empty(0)

    def listen(self, net: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """`net`, its last logits remembered."""

        def heard(x: Tensor) -> Tensor:
            logits = net(x)
            self.logits = logits.detach()
            return logits

        return heard

    def __call__(self, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        """(n,) bool: which of the images at `index` (n,) go on from x_adv along `gradient` (n, C, H, W)."""
        logits = self.logits if len(self.logits) == len(index) else self.logits[index]
        return self.goes_on(logits, x_adv, gradient, index)

    def goes_on(self, logits: Tensor, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        """The decision, with the logits (n, C) at x_adv."""
        return torch.ones_like(index, dtype=torch.bool)

    def observed(self) -> dict[str, Tensor]:
        """Keywords for the loss, per image (N,)."""
        return {}


class UntilWrong(StoppingCriterion):
    """An image stops `patience` steps after it is first misclassified: FAT's tau, and evaluation's frozen images (0).

    Source: Zhang et al. 2020.
    """

    def __init__(self, x: Tensor, y: Tensor, epsilon: float | Tensor, *, patience: float = 0) -> None:
        super().__init__(x, y, epsilon)
        self.left = torch.full_like(y, int(patience))

    def goes_on(self, logits: Tensor, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        """Right, or wrong with patience left, which this uses up."""
        wrong = logits.argmax(1) != self.y[index]
        going = ~wrong | (self.left[index] > 0)
        self.left[index] -= wrong.long()
        return going


class UntilGap(StoppingCriterion):
    """An image moves while max_{j != y} p_j - p_y <= gap: SAT's curriculum (Sitawarin et al. 2020)."""

    def __init__(self, x: Tensor, y: Tensor, epsilon: float | Tensor, *, gap: float) -> None:
        super().__init__(x, y, epsilon)
        self.gap = gap

    def goes_on(self, logits: Tensor, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        """The probability gap is not yet above `gap`."""
        p, own = logits.softmax(1), self.y[index][:, None]
        others = p.scatter(1, own, float("-inf")).amax(1)
        return others - p.gather(1, own).squeeze(1) <= self.gap


class UntilConverged(StoppingCriterion):
    """An image moves while FOSC = epsilon ||g||_1 - <x' - x, g> > bound: DART's convergence (Wang et al. 2019).

    The inner product is taken with the image at the ball's centre, where x' - x lies in the ball, so FOSC >= 0.
    """

    def __init__(self, x: Tensor, y: Tensor, epsilon: float | Tensor, *, bound: float) -> None:
        super().__init__(x, y, epsilon)
        self.bound = bound

    def goes_on(self, logits: Tensor, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        """The first-order stationary condition is still above the bound."""
        moved = ((x_adv - self.x[index]) * gradient).flatten(1).sum(1)
        radius = self.epsilon[index] if isinstance(self.epsilon, Tensor) else self.epsilon
        return radius * gradient.abs().flatten(1).sum(1) - moved > self.bound


class CountRight(StoppingCriterion):
    """kappa: at how many iterates, the start included and the last left out, an image is still right (GAIRAT)."""

    def __init__(self, x: Tensor, y: Tensor, epsilon: float | Tensor) -> None:
        super().__init__(x, y, epsilon)
        self.kappa = torch.zeros_like(y)

    def goes_on(self, logits: Tensor, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        """All go on; those that are right are counted."""
        self.kappa[index] += (logits.argmax(1) == self.y[index]).long()
        return super().goes_on(logits, x_adv, gradient, index)

    def observed(self) -> dict[str, Tensor]:
        """kappa (N,), whole numbers from 0 to the attack's steps."""
        return {"kappa": self.kappa}
