"""What released code runs today, with the work that it wastes, beside ours: PGD, seven training steps, evaluations.

Nothing here is fast or makes a result: the benchmark times the library against it, and tests hold the two equal.
Images x (N, C, H, W) in [0, 1], radii in the same unit; attacks start at a given x_start, so that both can share it.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from lib.attacks.pgd import Objective, per_image, pgd, project, uniform_in_image
from lib.benchmark.measure import Work
from lib.data import Split, to_float
from lib.errors import UserError, choose
from lib.evaluate import ATTACKS, AttackSpec
from lib.losses import cross_entropy, kl
from lib.methods import METHODS, Nets, ce_label, kl_teacher_student
from lib.methods.core import Terms
from lib.models import architecture
from lib.models.modes import mode
from lib.train import PRECISIONS, Schedule, Training, TrainingExtras, build_training

RATE = 0.01  # the learning rate, in both forms


class Released(NamedTuple):
    """A method's released step beside ours: its row in METHODS, what its attack maximises, and its loss.

    Both are called as in a Method; without a `loss`, the released one does the same work as the row's. The attack
    differentiates weights too (loss.backward()), or the input alone.
    """

    method: str
    objective: Callable[[Nets, Tensor, Tensor], Objective]
    loss: Callable[..., Terms] | None = None
    weights_too: bool = False


def attack(
    objective: Objective, x: Tensor, x_start: Tensor, *, weights_too: bool = True, **settings: float | Tensor
) -> Tensor:
    """Signed ascent on the mean of objective(x') (N,), with pgd's epsilon, step_size and steps.

    Every image takes part in every pass, even after its own last step. With `weights_too` every weight's gradient is
    computed and accumulates; without it, their activations are kept.
    """
    radius, size, count = (per_image(settings[name], x) for name in ("epsilon", "step_size", "steps"))
    x_adv = x_start
    for t in range(int(count.max())):
        x_adv = x_adv.detach().requires_grad_()
        objective(x_adv).mean().backward(inputs=None if weights_too else [x_adv])
        assert x_adv.grad is not None
        x_adv = project(x_adv + (t < count) * size * x_adv.grad.sign(), x, radius)
    return x_adv.detach()


def _dynat(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, target_weight: float, trade_off: float) -> Terms:
    """The target's clean forward serves batch-norm alone, and keeps its activations."""
    student_adv, _, guide = nets.student(x_adv), nets.student(x), nets.guide(x)
    return {"guide": cross_entropy(guide, y), "adv": target_weight * cross_entropy(student_adv, guide.argmax(1))}


def _adaad(nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor, *, adv_weight: float) -> Terms:
    """The clean term has weight 0, and is computed and differentiated."""
    with torch.no_grad():
        teacher, teacher_adv = nets.teacher(x), nets.teacher(x_adv)
    student, student_adv = nets.student(x), nets.student(x_adv)
    return {"adv": adv_weight * kl(teacher_adv, student_adv), "clean": (1 - adv_weight) * kl(teacher, student)}


RELEASED = {
    "PGD-AT": Released("pgd_at_uniform", ce_label, weights_too=True),
    # the clean output is computed anew at every step of the attack
    "TRADES": Released("trades_as_released", lambda nets, x, y: lambda z: kl(nets.student(x), nets.student(z))),
    # the guide is forwarded, in train mode, at every step, to the same label each time
    "DYNAT-Inner": Released(
        "dynat_inner", lambda nets, x, y: lambda z: cross_entropy(nets.student(z), nets.guide(x).argmax(1)), _dynat
    ),
    # the guide's clean output is computed anew at every step
    "D2R-CAG": Released("d2r_as_released", lambda nets, x, y: lambda z: kl(nets.guide(x), nets.student(z))),
    # the teacher's weights require gradients, so its activations are all kept
    "AdaAD": Released("adaad", kl_teacher_student, _adaad),
    "DGAD": Released("dgad", kl_teacher_student),
    # with an attack that has settings per image
    "LAS-PGD-AT": Released("pgd_at_smoothed", ce_label, weights_too=True),
}


@dataclass(frozen=True)
class SpeedParameters:
    """The parameters of benchmark_speed; UserError for a number that is too small, or an unknown name."""

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
        counts = (self.steps, self.attack_steps, self.repeats, self.curve_repeats)
        if self.side < 8 or self.batch_size < 0 or min(counts) < 1:
            raise UserError(f"side is at least 8, steps and repeats at least 1, batch_size 0 or more; got {self}")
        architecture(self.model)
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

    `nets` are the student and, if there is one, a frozen teacher or a guide that is trained too. LAS-PGD-AT draws its
    attack's settings per image from its code's options, 3 to 14 steps where `steps` is 10.
    """

    def __init__(
        self, title: str, build: Callable[[], nn.Module], x: Tensor, y: Tensor, *, radius: float, steps: int
    ) -> None:
        self.released, self.x, self.y = choose("method", title, RELEASED), x, y
        self.method = METHODS[self.released.method]
        other = build() if self.method.needs_teacher or self.method.trains_guide else nn.Identity()
        self.nets = nn.ModuleList((build(), other.train(not self.method.needs_teacher))).to(x.device)
        self.settings: dict[str, Any] = {"epsilon": radius, "step_size": radius / 4, "steps": steps}
        if title == "LAS-PGD-AT":
            generator, options = Generator().manual_seed(0), ((3, 16), (3, 15), (1, 6))
            epsilon, count, size = (torch.randint(*ends, (len(x),), generator=generator).to(x) for ends in options)
            self.settings = {"epsilon": epsilon * radius / 8, "step_size": size * radius / 8}
            self.settings["steps"] = (count * steps / 10).round().clamp_min(1)
        self.start = self.method.start(x, per_image(self.settings["epsilon"], x), Generator(x.device).manual_seed(0))


class ReleasedStep:
    """One training step of the case's released form per call, in fp32 on a copy of its networks -> (x', loss)."""

    def __init__(self, case: Case) -> None:
        self.case, self.nets = case, deepcopy(case.nets)
        trained = self.nets if case.method.trains_guide else self.nets[:1]
        self.optimizer = torch.optim.SGD(trained.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
        student, other = self.nets
        self.roles = Nets(student, teacher=other, guide=other)

    def craft(self) -> Tensor:
        """x' (N, C, H, W) of the form's attack."""
        case, form, (student, other) = self.case, self.case.released, self.nets
        with mode(student, train=False), mode(other, train=case.method.guide_mode == "train_at_every_step"):
            objective = form.objective(self.roles, case.x, case.y)
            return attack(objective, case.x, case.start, **case.settings, weights_too=form.weights_too)

    def __call__(self) -> tuple[Tensor, Tensor]:
        case, x_adv = self.case, self.craft()
        self.optimizer.zero_grad()
        loss_of = case.released.loss or case.method.loss
        terms = loss_of(self.roles, case.x, x_adv, case.y, **case.method.weights)
        loss = torch.stack(list(terms.values())).sum(0).mean()
        loss.backward()
        self.optimizer.step()
        return x_adv, loss.detach()


def training(case: Case, precision: str = "fp32", execution: str = "fast") -> Training:
    """The library's training of the case, on a copy of its networks; its generator is at the case's start."""
    method, (student, other) = case.method, deepcopy(case.nets)
    teacher, guide = other if method.needs_teacher else None, other if method.trains_guide else None
    data, schedule = Split(case.x, case.y), Schedule(1000, batch_size=len(case.y), lr=RATE, milestones=(1000,))
    ways: dict[str, Any] = {"extras": TrainingExtras(guide), "precision": precision, "execution": execution}
    ours = build_training(student, teacher, method, partial(pgd, epsilon=0), data, schedule, lambda net: 0.0, **ways)
    ours.attack = partial(pgd, **case.settings)  # whose settings may be per image
    return ours


def step_forms(case: Case) -> dict[str, Callable[[], Work]]:
    """What makes a training step of the case: as released, and ours by precision."""
    ours = {name: lambda name=name: partial(training(case, name).train_step, case.x, case.y) for name in PRECISIONS}
    return {"released": partial(ReleasedStep, case), **ours}


def pgd_forms(case: Case, precisions: tuple[str, ...]) -> dict[str, Work]:
    """The case's attack by torchattacks, by a loop of loss.backward(), and ours by precision, each on a copy."""
    import torchattacks

    epsilon, step_size, steps = case.settings.values()
    library = torchattacks.PGD(deepcopy(case.nets)[0].eval(), eps=epsilon, alpha=step_size, steps=steps)
    forms: dict[str, Work] = {"torchattacks": partial(library, case.x, case.y)}
    forms["loss.backward()"] = ReleasedStep(case).craft
    return forms | {f"ours, {name}": partial(training(case, name).craft, case.x, case.y) for name in precisions}


def flags(net: nn.Module, test: Split, column: AttackSpec) -> str:
    """Which images `net` has right ("1"), in eval mode: clean, FGSM, PGD or C&W in L-inf, the authors' AutoAttack.

    Every column is a run of its own with gradients for the weights too, and a frozen image stays in the batch.
    Raises UserError for any other attack.
    """
    x, y = (part[: column.images or None] for part in (to_float(test.images), test.labels))
    size, generator = column.batch_size, Generator(x.device).manual_seed(column.seed)
    with mode(net, train=False):
        if column.attack == "autoattack":
            x_adv = _autoattack(net, x, y, column)
        else:
            batches = zip(x.split(size), y.split(size), strict=True)
            x_adv = torch.cat([_stepped(net, *batch, column, generator) for batch in batches])
        with torch.no_grad():
            right = torch.cat([net(images) for images in x_adv.split(size)]).argmax(1) == y
    net.zero_grad(set_to_none=True)
    return "".join("01"[flag] for flag in right.tolist())


def _stepped(net: nn.Module, x: Tensor, y: Tensor, column: AttackSpec, generator: Generator) -> Tensor:
    known = {name: one for name, one in ATTACKS.items() if one.loss or name in ("clean", "fgsm")}
    one = choose("attack of the plain path", column.attack, known)
    loss, frozen = one.loss or cross_entropy, one.freeze

    def objective(x_adv: Tensor) -> Tensor:
        logits = net(x_adv)
        return loss(logits, y) * ((logits.argmax(1) == y) | (not frozen))  # the others' gradient is 0, and they stay

    e = column.epsilon
    if one.loss is None:
        return attack(objective, x, x, epsilon=e, step_size=e, steps=int(column.attack == "fgsm"))
    start = uniform_in_image(x, x.new_tensor(e), generator)
    return attack(objective, x, start, epsilon=e, step_size=column.step_size, steps=column.steps)


def _autoattack(net: nn.Module, x: Tensor, y: Tensor, column: AttackSpec) -> Tensor:
    from pyautoattack import AutoAttack

    authors = AutoAttack(net, eps=column.epsilon, device=x.device, seed=column.seed)
    authors.attacks_to_run = list(column.stages)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):  # it seeds the global generators
        return authors.run_standard_evaluation(x, y, batch_size=column.batch_size)[0].detach()
