"""SGD and the schedule of its learning rate."""

import math
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from lib.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """SGD's settings: lr falls by 10 after the milestones' epochs; without any it is one cycle, up to lr and to 0.

    Milestones count epochs from 0, as the first with the lower rate; (epochs,) keeps the rate constant.
    """

    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[int, ...] = ()
    nesterov: bool = False
    first_lr: float = 0.0  # the first epoch's, where it has one of its own
    rise: float = 0.3  # the share of one cycle in which the rate rises
    decay: float = 0.0  # with milestones: at step t the rate is divided by 1 + decay t as well

    def __post_init__(self) -> None:
        wanted = {
            "epochs and batch_size >= 1": min(self.epochs, self.batch_size) >= 1,
            "a positive lr": 0 < self.lr < math.inf,
            "a momentum in [0, 1)": 0 <= self.momentum < 1,
            "a momentum > 0 for Nesterov's": self.momentum > 0 or not self.nesterov,
            "a weight_decay >= 0": 0 <= self.weight_decay < math.inf,
            "milestones before its end": self.milestones == (self.epochs,)
            or all(0 <= milestone < self.epochs for milestone in self.milestones),
            "a first_lr >= 0": 0 <= self.first_lr < math.inf,
            "milestones where there is a first_lr or a decay": self.milestones or not (self.first_lr or self.decay),
            "a rise in (0, 1)": 0 < self.rise < 1,
            "a decay >= 0": 0 <= self.decay < math.inf,
        }
        for what, met in wanted.items():
            if not met:
                raise UserError(f"a schedule wants {what}, got {self}")

    def steps(self, images: int) -> int:
        """Optimisation steps over `images` images; the last batch of an epoch may be partial."""
        return self.epochs * -(-images // self.batch_size)

    def build(self, net: nn.Module, images: int) -> tuple[Optimizer, LRScheduler]:
        """SGD over all parameters, and the scheduler that is stepped once per batch."""
        sgd = SGD(net.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov)
        if not self.milestones:
            steps = max(2, self.steps(images))
            return sgd, OneCycleLR(sgd, self.lr, steps, pct_start=self.rise, cycle_momentum=False)
        per_epoch = self.steps(images) // self.epochs

        def factor(step: int) -> float:
            if step < per_epoch and self.first_lr:
                return self.first_lr / self.lr
            drops = sum(step // per_epoch >= milestone for milestone in self.milestones)
            return 0.1**drops / (1 + self.decay * step)

        return sgd, LambdaLR(sgd, factor)
