"""SGD and the schedule of its learning rate."""

import math
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from lib.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """SGD's settings: lr falls by 10 after the milestones' epochs; without any it is one cycle, up to lr and to 0."""

    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[int, ...] = ()
    nesterov: bool = False
    first_lr: float = 0.0  # the first epoch's, where it has one of its own

    def __post_init__(self) -> None:
        wanted = {
            "epochs and batch_size >= 1": min(self.epochs, self.batch_size) >= 1,
            "a positive lr": 0 < self.lr < math.inf,
            "a momentum in [0, 1)": 0 <= self.momentum < 1,
            "a momentum > 0 for Nesterov's": self.momentum > 0 or not self.nesterov,
            "a weight_decay >= 0": 0 <= self.weight_decay < math.inf,
            "milestones >= 0": min(self.milestones, default=0) >= 0,
            "a first_lr >= 0": 0 <= self.first_lr < math.inf,
            "milestones where there is a first_lr": bool(self.milestones) or not self.first_lr,
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
            return sgd, OneCycleLR(sgd, self.lr, total_steps=max(2, self.steps(images)), cycle_momentum=False)
        per_epoch = self.steps(images) // self.epochs

        def factor(step: int) -> float:
            if step < per_epoch and self.first_lr:
                return self.first_lr / self.lr
            return 0.1 ** sum(step // per_epoch >= milestone for milestone in self.milestones)

        return sgd, LambdaLR(sgd, factor)
