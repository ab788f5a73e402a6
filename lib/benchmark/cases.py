"""One training step on one batch: the library's, and its released form, from the same networks and images."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor, nn

from lib.attacks.levers import PLAIN, STANDARD, Levers
from lib.attacks.pgd import pgd
from lib.benchmark.released import Ball, PlainNets, train_step
from lib.data import Split
from lib.methods import METHODS
from lib.methods.strategy import ATTACK_SETTINGS, Settings, Strategy, StrategySpec, Target
from lib.train import Schedule, Training, TrainingExtras

LAS = "pgd_at_smoothed"  # LAS-PGD-AT's loss; its attack has settings per image
TITLES = {
    "pgd_at_uniform": "PGD-AT",
    "trades_as_released": "TRADES",
    "dynat_inner": "DYNAT-Inner",
    "d2r_as_released": "D2R-CAG",
    "adaad": "AdaAD",
    "dgad": "DGAD",
    LAS: "LAS-PGD-AT",
}
RATE = 0.01  # the learning rate of every step here, on both sides


class Given(Strategy):
    """Settings that were drawn beforehand, so that both sides attack alike."""

    def __init__(self, drawn: Settings) -> None:
        super().__init__(StrategySpec("random", start="training"))
        self.drawn = drawn

    def settings(self, target: Target, x: Tensor) -> Settings:
        """What was given."""
        return dict(self.drawn)


@dataclass(frozen=True)
class Case:
    """A method's training step on one batch: fresh networks, the images, the ball, the generator's seed."""

    name: str
    nets: PlainNets
    x: Tensor
    y: Tensor
    ball: Ball
    radius: float

    @property
    def start(self) -> Tensor:
        """Where the attack of the first step begins, on both sides."""
        generator = Generator(self.x.device).manual_seed(0)
        return METHODS[self.name].start(self.x, self.x.new_tensor(self.radius), generator)


def case(name: str, build: Callable[[], nn.Module], x: Tensor, y: Tensor, radius: float, steps: int) -> Case:
    """The case of METHODS[name] with networks from `build`, the attack having `steps` steps of radius / 4.

    LAS-PGD-AT draws its settings per image from its code's options, 3 to 14 steps, in proportion to `steps` = 10.
    """
    method = METHODS[name]
    other: nn.Module = build() if method.needs_teacher or method.trains_guide else nn.Identity()
    nets = PlainNets(build().to(x.device), other.to(x.device))
    if method.needs_teacher:
        nets.other.eval()
    ball = _drawn(x, radius, steps) if name == LAS else Ball(radius, radius / 4, steps)
    return Case(name, nets, x, y, ball, radius)


def _drawn(x: Tensor, radius: float, steps: int) -> Ball:
    generator = Generator().manual_seed(0)
    low, high, sizes = ((3, 16), (3, 15), (1, 6))
    epsilon, count, size = (torch.randint(*ends, (len(x),), generator=generator) for ends in (low, high, sizes))
    count = (count * steps / 10).round().clamp_min(1)
    return Ball((epsilon * radius / 8).to(x), (size * radius / 8).to(x), count.to(x))


def training(case: Case, levers: Levers = STANDARD, precision: str = "fp32") -> Training:
    """The library's training of the case: one batch, no augmentation, on a copy of its networks."""
    nets, method = deepcopy(case.nets), METHODS[case.name]
    ball, strategy = case.ball, None
    if case.name == LAS:
        values = (ball.epsilon, ball.step_size, ball.steps)
        strategy = Given({name: torch.as_tensor(value) for name, value in zip(ATTACK_SETTINGS, values, strict=True)})
        ball = Ball(case.radius, case.radius / 4, 10)
    return Training(
        nets.student,
        nets.other if method.needs_teacher else None,
        method,
        partial(pgd, epsilon=ball.epsilon, step_size=ball.step_size, steps=ball.steps),
        Split(case.x, case.y),
        Schedule(1000, batch_size=len(case.y), lr=RATE, milestones=(1000,)),
        score=lambda net: 0.0,
        extras=TrainingExtras(guide=nets.other if method.trains_guide else None, strategy=strategy),
        precision=precision,
        execution="plain" if levers == PLAIN else "fast",
    )


class ReleasedStep:
    """One training step of the case's released form per call, on a copy of its networks; returns x' and the loss."""

    def __init__(self, case: Case) -> None:
        self.case, self.nets = case, deepcopy(case.nets)
        trained = [*self.nets.student.parameters()]
        trained += self.nets.other.parameters() if METHODS[case.name].trains_guide else []
        self.optimizer = torch.optim.SGD(trained, RATE, momentum=0.9, weight_decay=5e-4)

    def __call__(self) -> tuple[Tensor, Tensor]:
        case = self.case
        return train_step(case.name, self.nets, self.optimizer, case.x, case.y, case.start, case.ball)
