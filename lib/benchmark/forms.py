"""The work that the speed benchmark times on equal images, as released and as ours: PGD and seven training steps."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Generator, Tensor, nn

from lib.attacks.pgd import pgd
from lib.benchmark.measure import Work
from lib.benchmark.released import RELEASED, Ball, Networks, attack
from lib.data import Split
from lib.errors import UserError, choose
from lib.methods import METHODS
from lib.methods.strategy import Settings, Strategy, StrategySpec, Target
from lib.models import MODELS
from lib.models.modes import mode
from lib.train import PRECISIONS, Schedule, Training, TrainingExtras, build_training

RATE = 0.01  # the learning rate, in both forms


@dataclass(frozen=True)
class SpeedParameters:
    """The parameters of benchmark_speed, with their defaults: twenty minutes on two cores.

    Raises:
        UserError: a number that is too small, or an unknown model, method or axis.
    """

    device: str = "auto"
    model: str = "ResNet18"
    methods: list[str] = field(default_factory=list)
    batch_size: int = 0
    side: int = 32
    steps: int = 20
    attack_steps: int = 10
    repeats: int = 3
    curve: dict[str, list[int]] = field(default_factory=dict)
    curve_repeats: int = 9
    outputs: str = "outputs"

    def __post_init__(self) -> None:
        steps_and_rounds = min(self.steps, self.attack_steps, self.repeats, self.curve_repeats)
        if self.side < 8 or self.batch_size < 0 or steps_and_rounds < 1:
            raise UserError(f"side is at least 8, steps and repeats at least 1, batch_size 0 or more; got {self}")
        choose("model", self.model, MODELS)
        for title in self.methods:
            choose("method", title, RELEASED)
        for axis, points in self.curve.items():
            choose("axis of the curves", axis, dict.fromkeys(("batch", "steps", "width", "side")))
            if len(points) < 2 or min(points) < 1:
                raise UserError(f"parameter curve needs two or more points of {axis}, each at least 1, got {points}")


def noise(count: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Uniform random images (count, 3, side, side) and labels of ten classes: time does not depend on them."""
    generator = Generator().manual_seed(0)
    images = torch.rand(count, 3, side, side, generator=generator)
    return images.to(device), torch.randint(10, (count,), generator=generator).to(device)


class Case:
    """A method's training step on one batch: networks from `build`, the attack in steps of radius / 4, and its start.

    LAS-PGD-AT draws its settings per image from its code's options, 3 to 14 steps where `steps` is 10.
    """

    def __init__(
        self, title: str, build: Callable[[], nn.Module], x: Tensor, y: Tensor, *, radius: float, steps: int
    ) -> None:
        self.released = choose("method", title, RELEASED)
        self.method, self.x, self.y, self.radius = METHODS[self.released.method], x, y, radius
        other = build() if self.method.needs_teacher or self.method.trains_guide else nn.Identity()
        self.nets = Networks(build().to(x.device), other.to(x.device).train(not self.method.needs_teacher))
        self.start = self.method.start(x, x.new_tensor(radius), Generator(x.device).manual_seed(0))
        self.ball, self.per_image = Ball(radius, radius / 4, steps), title == "LAS-PGD-AT"
        if self.per_image:
            generator, options = Generator().manual_seed(0), ((3, 16), (3, 15), (1, 6))
            epsilon, count, size = (torch.randint(*ends, (len(x),), generator=generator).to(x) for ends in options)
            count = (count * steps / 10).round().clamp_min(1)
            self.ball = Ball(epsilon * radius / 8, size * radius / 8, count)


class ReleasedStep:
    """One training step of the case's released form per call, in fp32 on a copy of its networks -> (x', loss)."""

    def __init__(self, case: Case) -> None:
        self.case, self.nets = case, deepcopy(case.nets)
        trained = nn.ModuleList(self.nets if case.method.trains_guide else self.nets[:1])
        self.optimizer = torch.optim.SGD(trained.parameters(), RATE, momentum=0.9, weight_decay=5e-4)

    def craft(self) -> Tensor:
        """x' (N, C, H, W) of the form's attack."""
        case, nets, form = self.case, self.nets, self.case.released
        with mode(nets.student, train=False), mode(nets.other, train=form.other_trains):
            objective = partial(form.objective, nets, case.x, case.y)
            return attack(objective, case.x, case.start, case.ball, form.weights_too)

    def __call__(self) -> tuple[Tensor, Tensor]:
        x_adv = self.craft()
        self.optimizer.zero_grad()
        loss = self.case.released.loss(self.nets, self.case.x, self.case.y, x_adv)
        loss.backward()
        self.optimizer.step()
        return x_adv, loss.detach()


class Drawn(Strategy):
    """A strategy whose settings were drawn beforehand, so that both forms attack alike."""

    def __init__(self, ball: Ball) -> None:
        super().__init__(StrategySpec("random", start="training"))
        self.drawn = {name: torch.as_tensor(value) for name, value in ball._asdict().items()}

    def settings(self, target: Target, x: Tensor) -> Settings:
        """What was drawn."""
        return dict(self.drawn)


def training(case: Case, precision: str = "fp32", execution: str = "fast") -> Training:
    """The library's training of the case, on a copy of its networks; its generator is at the case's start."""
    nets, method = deepcopy(case.nets), case.method
    ball = Ball(case.radius, case.radius / 4, 10) if case.per_image else case.ball
    guide, strategy = nets.other if method.trains_guide else None, Drawn(case.ball) if case.per_image else None
    return build_training(
        nets.student,
        nets.other if method.needs_teacher else None,
        method,
        partial(pgd, **ball._asdict()),
        Split(case.x, case.y),
        Schedule(1000, batch_size=len(case.y), lr=RATE, milestones=(1000,)),
        score=lambda net: 0.0,
        extras=TrainingExtras(guide, strategy),
        precision=precision,
        execution=execution,
    )


def our_step(case: Case, precision: str) -> Work:
    """One training step of ours per call."""
    return partial(training(case, precision).train_step, case.x, case.y)


def step_forms(case: Case) -> dict[str, Callable[[], Work]]:
    """What makes a training step of the case: as released, and ours by precision."""
    return {"released": partial(ReleasedStep, case)} | {name: partial(our_step, case, name) for name in PRECISIONS}


def pgd_forms(case: Case, precisions: tuple[str, ...]) -> dict[str, Work]:
    """The case's attack by torchattacks, by a loop of loss.backward(), and ours by precision, each on a copy."""
    import torchattacks

    ball, student = case.ball, deepcopy(case.nets.student).eval()
    library = torchattacks.PGD(student, eps=ball.epsilon, alpha=ball.step_size, steps=ball.steps)
    forms: dict[str, Work] = {"torchattacks": partial(library, case.x, case.y)}
    forms["loss.backward()"] = ReleasedStep(case).craft
    return forms | {f"ours, {name}": partial(training(case, name).craft, case.x, case.y) for name in precisions}
