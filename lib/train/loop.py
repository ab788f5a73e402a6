"""The training loop: it is handed networks, a method, an attack and data, and touches neither disk nor screen.

`train_step` is: crop and flip; x' by the attack; the method's terms at x'; their mean, backward; the optimiser. What
else a method or a row may need (a guide, a strategy, AWP, an average) is composed with it in lib/train/extended.py.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lib.attacks.pgd import Objective, Start
from lib.data import Split, crop_and_flip, to_float
from lib.errors import UserError
from lib.methods import Method, Net, Nets, Weight, weight_at
from lib.train.devices import Parallel, engine
from lib.train.meter import Meter
from lib.train.schedule import Schedule

STATE = ("step", "history", "costs", "best")  # plain values that a continuation needs


@dataclass(eq=False, repr=False)
class Training:
    """One run's state: student, optimiser, scheduler, generator, history and the best weights so far.

    `run` goes from wherever the state is to the end; `state_dict` after an epoch, loaded into an equal Training,
    continues to the same final weights on the same machine. Runs are started with `build_training`; UserError where
    the method needs a teacher, and there is none, or is more than an attack and a loss.
    """

    student: nn.Module
    teacher: nn.Module | None
    method: Method
    attack: partial[Tensor]
    data: Split
    schedule: Schedule
    score: Callable[[nn.Module], float]  # how good the student is now; higher is better
    _: KW_ONLY
    weights: Mapping[str, Weight] = field(default_factory=dict)  # those that are not the method's own
    padding: int = 0
    flip: bool = False
    seed: int = 0
    precision: str = "fp32"
    execution: str = "fast"
    max_steps: int = 0
    parallel: Parallel | None = None  # see lib/train/devices.py
    follow: Callable[["Training"], dict[str, Any]] | None = None  # further numbers of an epoch, for the history only
    guide: nn.Module | None = field(default=None, init=False)  # see lib/train/extended.py

    def __post_init__(self) -> None:
        if self.method.needs_teacher and self.teacher is None:
            raise UserError(f"{self.method.title} needs a teacher")
        if self.method.extended and type(self) is Training:
            raise UserError(f"{self.method.title} is more than an attack and a loss: start it with build_training")
        self.engine = engine(self.parallel, self.execution, self.precision)
        nets = {"student": self.student, "teacher": self.teacher, "guide": self.guide}
        self.networks = {name: self.engine.lay_out(net) for name, net in nets.items() if net is not None}
        if self.teacher is not None:
            self.teacher.eval().requires_grad_(False)
        self.nets = self.views(self.at_precision)
        self.weights = {**self.method.all_weights, **self.weights}
        self.epsilon = float(self.attack.keywords["epsilon"])
        self.generator = Generator(self.data.images.device).manual_seed(self.seed)
        trained, images = {name: net for name, net in self.networks.items() if name != "teacher"}, len(self.data.labels)
        self.optimizer, self.scheduler = self.schedule.build(nn.ModuleList(trained.values()), images)
        self.parts: dict[str, Any] = {**trained, "optimizer": self.optimizer, "scheduler": self.scheduler}
        self.kept = self.student  # what is scored and published
        self.step, self.total = 0, self.schedule.steps(images)
        self.stop = min(self.total, self.max_steps or self.total)
        self.history: list[dict[str, Any]] = []
        self.costs: list[dict[str, float]] = []  # of every epoch, its scoring included; no part of the result
        self.labels_right: list[Tensor] = []  # per batch of the epoch: the share of images that a guide has right
        self.best: dict[str, Any] = {"score": -1.0, "epoch": 0, "weights": {}}

    @property
    def progress(self) -> float:
        """The share of the training that is done."""
        return self.step / self.total

    def run(self, after_epoch: Callable[["Training"], None] = lambda training: None) -> None:
        """Train to the end, calling `after_epoch` after each epoch, when the state can be saved."""
        while self.step < self.stop:
            meter = Meter(self.data.images.device)
            terms = self.epoch()
            score = self.score(self.kept)
            row = {"epoch": len(self.history) + 1, "step": self.step, "score": score, **terms}
            self.history.append(row | self.notes(score))
            self.costs.append(meter.read())
            if score > self.best["score"]:
                weights = deepcopy(dict(self.kept.state_dict()))
                self.best = {"score": score, "epoch": len(self.history), "weights": weights}
            after_epoch(self)

    def notes(self, score: float) -> dict[str, Any]:
        """What the history has of an epoch besides score and terms."""
        return {} if self.follow is None else {"followed": self.follow(self)}

    def epoch(self) -> dict[str, float]:
        """One pass over the data in a fresh order -> each term's mean over the batches; UserError where not finite."""
        sums: dict[str, float | Tensor] = {}
        self.labels_right = []
        order = torch.randperm(len(self.data.labels), generator=self.generator, device=self.data.images.device)
        batches = order.split(self.schedule.batch_size)[: self.stop - self.step]
        for index in batches:
            terms = self.train_step(to_float(self.data.images[index]), self.data.labels[index])
            sums |= {name: sums.get(name, 0.0) + term for name, term in terms.items()}
        means = {name: float(total) / len(batches) for name, total in sums.items()}
        if not all(map(math.isfinite, means.values())):
            raise UserError(f"training diverged in epoch {len(self.history) + 1}: {means}; a smaller lr may help")
        return means

    def train_step(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """One optimisation step on the batch x (b, C, H, W) in [0, 1], y (b,); returns the terms' means, detached."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.padding or self.flip:
            x = crop_and_flip(x, padding=self.padding, flip=self.flip, generator=self.generator)
        try:
            x_adv, observed = self.craft(x, y)
            self.student.train()
            terms = self.update(x, x_adv, y, observed)
        except ValueError as error:  # batch-norm's
            if "more than 1 value per channel" not in str(error):
                raise
            way = f"another batch_size than {self.schedule.batch_size}, or another number of training images"
            raise UserError(f"a batch of {len(y)} image has no batch statistics in this network: {way}") from error
        self.scheduler.step()
        self.step += 1
        return terms

    def craft(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x' = argmax of the method's objective in the ball, and what the loss is given of the way there: nothing."""
        if self.method.objective is None:
            return x, {}
        self.student.train(self.method.attack_mode == "train")
        return self.maximise(self.method.objective(self.views(self.engine.attack_view), x, y), x, self.method.start), {}

    def update(self, x: Tensor, x_adv: Tensor, y: Tensor, observed: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of the optimiser on the mean over images of the sum of the method's terms."""
        weights = {**self.current_weights(self.method.weights), **observed}
        terms = self.method.loss(self.nets, x, x_adv, y, **weights)
        for name, term in terms.items():
            if term.shape != y.shape:
                wrong = f"the term {name!r} of its loss has shape {tuple(term.shape)}"
                raise UserError(f"{self.method.title}: {wrong}; a loss gives one value per image, here ({len(y)},)")
        means = {name: term.mean() for name, term in terms.items()}
        torch.stack(list(means.values())).sum().backward()
        self.optimizer.step()
        return {name: mean.detach() for name, mean in means.items()}

    def views(self, view: Callable[[nn.Module], Net]) -> Nets:
        """The networks of a step, each as `view` has it."""
        return Nets(**{name: view(net) for name, net in self.networks.items()})

    def maximise(self, objective: Objective, x: Tensor, start: Start, **chosen: Any) -> Tensor:
        """x' of the training's attack on the objective, by the engine; `chosen` replaces settings of the attack."""
        if self.method.attack_mode == "train":
            objective = partial(objective)  # batch statistics: no image may leave the batch
        return self.engine.attack(self.attack, objective, x, start=start, generator=self.generator, **chosen)

    def at_precision(self, net: Net) -> Net:
        """`net` in the training's precision."""
        return self.engine.training_view(net)

    def current_weights(self, names: Iterable[str]) -> dict[str, float]:
        """The run's weights of these names as they are at this step."""
        return {name: weight_at(self.weights[name], self.progress, self.schedule.batch_size) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Everything a continuation needs, as tensors and plain values."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        return state | {name: getattr(self, name) for name in STATE} | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        for name in STATE:
            setattr(self, name, state[name])
        self.generator.set_state(state["generator"].cpu())
