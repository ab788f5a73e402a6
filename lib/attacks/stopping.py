"""Stopping criteria of an attack: which images go on, and what is recorded on the way."""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lib.attacks.pgd import Net
from lib.losses import margin


@dataclass(eq=False)
class StoppingCriterion:
    """criterion(x_adv, gradient, index): which images go on (see pgd); all of them, which the subclasses change.

    It costs no forward: the attack's network is `listen(net)`, which keeps the logits that the gradient is taken of.
    """

    x: Tensor
    y: Tensor
    epsilon: float | Tensor
    logits: Tensor = field(init=False)

    def listen(self, net: Net) -> Net:
        """`net`, whose last logits are kept."""

        def forward(x: Tensor) -> Tensor:
            logits = net(x)
            self.logits = logits.detach()
            return logits

        return forward

    def logits_at(self, index: Tensor) -> Tensor:
        """The logits (n, C) of the images at `index` (n,), whether the others have left the batch or not."""
        return self.logits if len(self.logits) == len(index) else self.logits[index]

    def right_at(self, index: Tensor) -> Tensor:
        """(n,) bool: which of them are classified as y."""
        return self.logits_at(index).argmax(1) == self.y[index]

    def __call__(self, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        return torch.ones_like(index, dtype=torch.bool)

    def observed(self) -> dict[str, Tensor]:
        """Keywords for the loss, per image (N,)."""
        return {}


@dataclass(eq=False)
class UntilWrong(StoppingCriterion):
    """An image stops `patience` steps after it is first misclassified: FAT's tau (Zhang et al. 2020)."""

    patience: float = 0

    def __post_init__(self) -> None:
        self.left = torch.full_like(self.y, int(self.patience))

    def __call__(self, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        right = self.right_at(index)
        going = right | (self.left[index] > 0)
        self.left[index] -= (~right).long()
        return going


@dataclass(eq=False)
class UntilGap(StoppingCriterion):
    """An image moves while max_{j != y} p_j - p_y <= gap: SAT's curriculum (Sitawarin et al. 2020)."""

    gap: float

    def __call__(self, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        return margin(self.logits_at(index).softmax(1), self.y[index]) <= self.gap


@dataclass(eq=False)
class UntilConverged(StoppingCriterion):
    """An image moves while FOSC = epsilon ||g||_1 - <x' - x, g> > bound: DART's convergence (Wang et al. 2019)."""

    bound: float

    def __call__(self, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        moved = ((x_adv - self.x[index]) * gradient).flatten(1).sum(1)  # from the ball's centre: FOSC >= 0
        radius = self.epsilon[index] if isinstance(self.epsilon, Tensor) else self.epsilon
        return radius * gradient.abs().flatten(1).sum(1) - moved > self.bound


@dataclass(eq=False)
class UntilConvergedAsReleased(UntilConverged):
    """The same where every image takes its first step, and x is the attack's start and not the image (DART's code)."""

    begun: bool = field(default=False, init=False)

    def __call__(self, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        if self.begun:
            return super().__call__(x_adv, gradient, index)
        self.begun, self.x = True, self.x.index_copy(0, index, x_adv.to(self.x))
        return torch.ones_like(index, dtype=torch.bool)


@dataclass(eq=False)
class Trajectory(StoppingCriterion):
    """Records one PGD on its way: `right[t]` (N,), which images are right at iterate t, and the iterates at `at`.

    The attack with n steps is a prefix of any longer one, so one run gives x' for every n in `at`, if images do not
    depend on one another. With `freeze` an image stays where it is first misclassified, and is wrong from there on.
    """

    at: Collection[int] = ()
    freeze: bool = False

    def __post_init__(self) -> None:
        self.right: list[Tensor] = []
        self._now, self._kept = self.x.clone(), dict[int, Tensor]()

    def __call__(self, x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
        right = self.right_at(index)
        self._now[index] = x_adv
        if len(self.right) in self.at:
            self._kept[len(self.right)] = self._now.clone()
        self.right.append(torch.zeros_like(self.y, dtype=torch.bool).index_copy(0, index, right))
        return right if self.freeze else torch.ones_like(right)

    def iterates(self, x_adv: Tensor) -> dict[int, Tensor]:
        """{n: x' (N, C, H, W) after n steps} for n in `at`, where x_adv is what the attack returned."""
        return {n: self._kept.get(n, x_adv) for n in self.at}
