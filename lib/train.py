"""The training loop: it is handed networks, a method, an attack and data, and touches neither disk nor screen.

One step, in order: crop and flip; the student in the method's attack mode; the attack; train mode; the method's
terms; their mean, backward; the optimiser. After every epoch the student is scored by PGD on images it did not see.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lib.data import Split, crop_and_flip, to_float
from lib.errors import UserError, choose
from lib.methods import Method, Net, Nets, Weight, weight_at

Attack = Callable[..., Tensor]  # (objective, x, *, start, generator) -> x'
Score = Callable[[nn.Module], float]  # how good the student is now; higher is better

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Schedule:
    """SGD's settings: lr falls by 10 at the milestones (epochs); without any it is one cycle, up to lr and to 0."""

    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not 0 < self.lr < math.inf or min(self.milestones, default=0) < 0:
            raise UserError(f"a schedule wants epochs and batch_size >= 1 and a positive lr, got {self}")

    def steps(self, images: int) -> int:
        """Optimisation steps over `images` images; the last batch of an epoch may be partial."""
        return self.epochs * -(-images // self.batch_size)

    def build(self, net: nn.Module, images: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """SGD over all parameters, and the scheduler that is stepped once per batch."""
        optimizer = torch.optim.SGD(net.parameters(), self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        if self.milestones:
            per_epoch = self.steps(images) // self.epochs
            drops = [epoch * per_epoch for epoch in self.milestones]
            return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, drops)
        one_cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, total_steps=max(2, self.steps(images)), cycle_momentum=False
        )
        return optimizer, one_cycle


@contextmanager
def mode(net: nn.Module, train: bool) -> Iterator[None]:
    """`net` in train or eval mode inside the block; afterwards every module as it was."""
    before = [(module, module.training) for module in net.modules()]
    net.train(train)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def in_precision(net: nn.Module, precision: str) -> Net:
    """`net` run under bf16 autocast or in fp32; either way its logits are fp32, and so is every loss on them.

    Raises:
        UserError: the precision is neither.
    """
    choose("precision", precision, dict.fromkeys(PRECISIONS))
    if precision == "fp32":
        return net

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return net(x).float()

    return forward


class Training:
    """One run's state: student, optimiser, scheduler, generator, history and the best weights so far.

    `run` goes from wherever the state is to the end; `state_dict` after an epoch, loaded into an equal Training,
    continues to the same final weights on the same machine.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        method: Method,
        attack: Attack,
        data: Split,
        schedule: Schedule,
        score: Score,
        *,
        weights: Mapping[str, Weight] | None = None,
        padding: int = 0,
        flip: bool = False,
        seed: int = 0,
        precision: str = "fp32",
        max_steps: int = 0,
    ) -> None:
        self.student, self.method, self.attack, self.data = student, method, attack, data
        self.schedule, self.score = schedule, score
        self.weights: dict[str, Weight] = {**method.weights, **(weights or {})}
        self.padding, self.flip = padding, flip
        if method.needs_teacher and teacher is None:
            raise UserError(f"{method.title} needs a teacher")
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        nets = [in_precision(net, precision) for net in (student, teacher) if net is not None]
        self.nets = Nets(*nets)
        self.generator = Generator(data.images.device).manual_seed(seed)
        self.optimizer, self.scheduler = schedule.build(student, len(data.labels))
        self.total = schedule.steps(len(data.labels))
        self.stop = min(self.total, max_steps) if max_steps else self.total
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"score": -1.0, "epoch": 0, "weights": {}}

    def run(self, after_epoch: Callable[["Training"], None] = lambda training: None) -> None:
        """Train to the end, calling `after_epoch` after each epoch, when the state can be saved."""
        while self.step < self.stop:
            terms = self.epoch()
            score = self.score(self.student)
            self.history.append({"epoch": len(self.history) + 1, "step": self.step, "score": score, **terms})
            if score > self.best["score"]:
                weights = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
                self.best = {"score": score, "epoch": len(self.history), "weights": weights}
            after_epoch(self)

    def epoch(self) -> dict[str, float]:
        """One pass over the data in a fresh order; returns each term's mean over the epoch's batches.

        Raises:
            UserError: a term is not finite any more.
        """
        count, batches = len(self.data.labels), 0
        sums: dict[str, float | Tensor] = {}
        order = torch.randperm(count, generator=self.generator, device=self.data.images.device)
        for index in order.split(self.schedule.batch_size):
            if self.step >= self.stop:
                break
            terms = self.train_step(to_float(self.data.images[index]), self.data.labels[index])
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term
            batches += 1
        means = {name: float(total) / batches for name, total in sums.items()}
        if not all(map(math.isfinite, means.values())):
            raise UserError(f"training diverged in epoch {len(self.history) + 1}: {means}; a smaller lr may help")
        return means

    def train_step(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """One optimisation step on the batch x (b, C, H, W) in [0, 1], y (b,); returns the terms' means, detached."""
        if self.padding or self.flip:
            x = crop_and_flip(x, padding=self.padding, flip=self.flip, generator=self.generator)
        x_adv = self.craft(x, y)
        self.student.train()
        progress, size = self.step / self.total, self.schedule.batch_size
        weights = {name: weight_at(weight, progress, size) for name, weight in self.weights.items()}
        per_image = self.method.loss(self.nets, x, x_adv, y, **weights)
        terms = {name: term.mean() for name, term in per_image.items()}
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return {name: term.detach() for name, term in terms.items()}

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """x' for the batch, the student in the method's attack mode."""
        if self.method.objective is None:
            return x
        with mode(self.student, self.method.attack_mode == "train"):
            objective = self.method.objective(self.nets, x, y)
            return self.attack(objective, x, start=self.method.start, generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        """Everything a continuation needs, as tensors and plain values."""
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "history": self.history,
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"].cpu())
        self.step, self.history, self.best = state["step"], state["history"], state["best"]
