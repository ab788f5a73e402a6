"""The training loop: it is handed networks, a method, an attack and data, and touches neither disk nor screen.

One step, in order: crop and flip; the strategy, where there is one; the student in the method's attack mode; the
attack; train mode; the weights perturbed, where they are; the method's terms; their mean, backward; the optimiser;
the average of the weights. After every epoch the student is scored by PGD on images it did not see.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from lib.attacks.engine import Engine, in_precision
from lib.attacks.levers import PLAIN, STANDARD, Levers
from lib.attacks.stopping import Watch
from lib.attacks.update import stepped_in_backward
from lib.data import Split, crop_and_flip, to_float
from lib.errors import UserError
from lib.methods import Method, Net, Nets, Weight, weight_at
from lib.methods.strategy import ATTACK_SETTINGS, Settings
from lib.models.modes import mode
from lib.train.extras import TrainingExtras
from lib.train.meter import Meter
from lib.train.schedule import Schedule
from lib.train.weights import EMA, as_if_forwarded, jittered, perturbed

Attack = partial[Tensor]  # pgd with epsilon, step_size and steps bound: (objective, x, *, start, generator, ...) -> x'
Score = Callable[[nn.Module], float]  # how good the student is now; higher is better
Follow = Callable[["Training"], dict[str, Any]]  # what else is told of an epoch, in the history only


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
        extras: TrainingExtras | None = None,
        weights: Mapping[str, Weight] | None = None,
        padding: int = 0,
        flip: bool = False,
        seed: int = 0,
        precision: str = "fp32",
        max_steps: int = 0,
        follow: Follow | None = None,
        levers: Levers = STANDARD,
        execution: str = "fast",
    ) -> None:
        levers = PLAIN if execution == "plain" else levers
        self.extras = extras or TrainingExtras()
        if method.needs_teacher and teacher is None:
            raise UserError(f"{method.title} needs a teacher")
        if method.trains_guide and self.extras.guide is None:
            raise UserError(f"{method.title} trains a guide beside its target, and none was given")
        if precision in ("bf16", "bf16_crafting"):
            levers = replace(levers, bf16=True)
        precision = "bf16" if precision == "bf16" else "fp32"
        stops = self.extras.strategy is not None or method.watch is not None  # images, each at its own time
        levers = levers.for_own_steps if stops else levers.for_equal_steps
        self.engine = Engine(levers, precision)
        for net in filter(None, (student, teacher, self.extras.guide)):
            self.engine.laid_out(net)
        self.nets = Nets(in_precision(student, precision))
        if teacher is not None:
            self.nets = replace(self.nets, teacher=in_precision(teacher.eval().requires_grad_(False), precision))
        if self.extras.guide is not None:
            self.nets = replace(self.nets, guide=in_precision(self.extras.guide.train(), precision))
        self.student, self.teacher, self.guide, self.method = student, teacher, self.extras.guide, method
        self.data, self.schedule, self.score, self.follow = data, schedule, score, follow
        self.attack, self.epsilon = attack, float(attack.keywords["epsilon"])
        self.weights = {**method.all_weights, **(weights or {})}
        self.padding, self.flip, self.precision = padding, flip, precision
        self.generator = Generator(data.images.device).manual_seed(seed)
        trained = nn.ModuleList([student] if self.guide is None else [student, self.guide])
        self.optimizer, self.scheduler = schedule.build(trained, len(data.labels), **levers.optimizer)
        self.average = EMA(student, self.extras.average) if self.extras.average else None
        self.total = schedule.steps(len(data.labels))
        self.stop = min(self.total, max_steps) if max_steps else self.total
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.costs: list[dict[str, float]] = []  # of every epoch, its scoring included; no part of the result
        self.labels_right: list[Tensor] = []  # per batch of the epoch: the share of images that the guide had right
        self.best: dict[str, Any] = {"score": -1.0, "epoch": 0, "weights": {}}

    @property
    def progress(self) -> float:
        """The share of the training that is done."""
        return self.step / self.total

    @property
    def lr_share(self) -> float:
        """The present learning rate as a share of the schedule's."""
        return float(self.optimizer.param_groups[0]["lr"]) / self.schedule.lr

    @property
    def kept(self) -> nn.Module:
        """What is scored and published: the student, or the average of its weights."""
        return self.average.net if self.average else self.student

    def run(self, after_epoch: Callable[["Training"], None] = lambda training: None) -> None:
        """Train to the end, calling `after_epoch` after each epoch, when the state can be saved."""
        while self.step < self.stop:
            meter = Meter(self.data.images.device)
            terms = self.epoch()
            score = self.score(self.kept)
            row: dict[str, Any] = {"epoch": len(self.history) + 1, "step": self.step, "score": score, **terms}
            if self.extras.strategy is not None:
                self.extras.strategy.after_epoch(self, score)
                row["strategy"] = self.extras.strategy.report()
            if self.follow is not None:
                row["followed"] = self.follow(self)
            self.history.append(row)
            self.costs.append(meter.read())
            if score > self.best["score"]:
                weights = {name: tensor.clone() for name, tensor in self.kept.state_dict().items()}
                self.best = {"score": score, "epoch": len(self.history), "weights": weights}
            after_epoch(self)

    def epoch(self) -> dict[str, float]:
        """One pass over the data in a fresh order; returns each term's mean over the epoch's batches.

        Raises:
            UserError: a term is not finite any more.
        """
        count, batches, self.labels_right = len(self.data.labels), 0, []
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
        self.optimizer.zero_grad(set_to_none=True)
        if self.padding or self.flip:
            x = crop_and_flip(x, padding=self.padding, flip=self.flip, generator=self.generator)
        settings: Settings = {}
        if self.extras.strategy is not None:
            self.extras.strategy.learn(self, x, y)
            settings = self.extras.strategy.settings(self, x)
        x_adv, settings = self.attacked(x, y, settings)
        if self.extras.strategy is not None:
            x_adv = self.extras.strategy.trained_on(self, x, x_adv)
        self.student.train()
        with self._perturbed(self.student, x, x_adv, y, settings), self._guide_forwards(), self._stepping():
            per_image = self._terms(self._heard(y), self.student, x, x_adv, y, settings)
            terms = {name: self._mean(name, term, y) for name, term in per_image.items()}
            torch.stack(list(terms.values())).sum().backward()
            self.optimizer.step()
        self.scheduler.step()
        if self.average is not None:
            self.average.update(self.student)
        self.step += 1
        return {name: term.detach() for name, term in terms.items()}

    def _mean(self, name: str, term: Tensor, y: Tensor) -> Tensor:
        if term.shape != y.shape:
            raise UserError(
                f"{self.method.title}: the term {name!r} of its loss has shape {tuple(term.shape)}; "
                f"a loss gives one value per image, here ({len(y)},), and the loop takes the mean"
            )
        return term.mean()

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """x' of the method's attack on the student, in the method's attack mode."""
        return self.attacked(x, y, {})[0]

    def at_precision(self, net: Net) -> Net:
        """`net` in this training's precision."""
        return in_precision(net, self.precision)

    def losses(self, student: Net, x: Tensor, x_adv: Tensor, y: Tensor, settings: Settings) -> Tensor:
        """The method's loss per image (b,), with `student` in the student's place and in the mode it is in."""
        return torch.stack(list(self._terms(self._spared(), student, x, x_adv, y, settings).values())).sum(0)

    def after_step(
        self,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        settings: Settings,
        weight_decay: bool,
        loss: Callable[[Net], Tensor] | None = None,
    ) -> nn.Module:
        """w - lr (grad + wd w) as a copy, lr as it is now, without momentum; no network of the training changes.

        The gradient is that of the mean of `loss`, a function of the copy, or else of the method's own.
        """
        copy = deepcopy(self.student).train()
        group = self.optimizer.param_groups[0]
        decay = group["weight_decay"] if weight_decay else 0.0
        with self._perturbed(copy, x, x_adv, y, settings):
            with torch.enable_grad():
                each = loss(self.at_precision(copy)) if loss else self.losses(copy, x, x_adv, y, settings)
                mean = each.mean()
            parameters = list(copy.parameters())
            gradients = torch.autograd.grad(mean, parameters, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(group["lr"] * (gradient + decay * parameter))
        return copy

    def attacked(self, x: Tensor, y: Tensor, settings: Settings) -> tuple[Tensor, Settings]:
        """x' of the method's attack under `settings`, and these with what the method's watch saw on the way."""
        if self.method.objective is None:
            return x, settings
        start = self.method.start
        if self.extras.strategy is not None:
            start = self.extras.strategy.start(self, start)
        chosen: dict[str, Any] = {name: value for name, value in settings.items() if name in ATTACK_SETTINGS}
        with mode(self.student, self.method.attack_mode == "train"), self._guide_mode(), self._noise():
            nets = self._attacked_nets(x)
            label = y if self.method.attack_label is None else self.method.attack_label(nets, x, y)
            watch = self._watch(x, label, chosen.get("epsilon", self.epsilon))
            if watch is not None:
                nets, chosen["rule"] = replace(nets, student=watch.listen(nets.student)), watch
            objective = self.method.objective(nets, x, label)
            if self.method.attack_mode == "train":
                objective = partial(objective)  # batch statistics: no image may leave the batch
            x_adv = self.engine.attack(self.attack, objective, x, start=start, generator=self.generator, **chosen)
        self.engine.rest(self.student, self.teacher, self.guide)
        return x_adv, settings | (watch.seen() if watch is not None else {})

    def _attacked_nets(self, x: Tensor) -> Nets:
        """The networks as the attack sees them; a guide in train mode is asked for labels only, as it is."""
        nets = replace(self.nets, student=self.engine.seen(self.student, x))
        if self.teacher is not None:
            nets = replace(nets, teacher=self.engine.seen(self.teacher, x))
        if self.guide is not None and not self.guide.training:
            nets = replace(nets, guide=self.engine.seen(self.guide, x))
        return nets

    def _watch(self, x: Tensor, y: Tensor, radius: float | Tensor) -> Watch | None:
        if self.method.watch is None:
            return None
        return self.method.watch(x, y, radius, **self._weights(self.method.watch_weights))

    def _noise(self) -> AbstractContextManager[None]:
        """The student's weights as the method's attack wants them."""
        std = self.method.attack_noise
        return jittered(self.student, std, self.generator) if std else nullcontext()

    @contextmanager
    def _guide_mode(self) -> Iterator[None]:
        """The guide as the method's attack wants it."""
        if self.guide is None:
            yield
            return
        times = self.attack.keywords["steps"] if self.method.guide_mode == "train_at_every_step" else 1
        with mode(self.guide, self.method.guide_mode != "eval"), as_if_forwarded(self.guide, times):
            yield

    def _guide_forwards(self) -> AbstractContextManager[None]:
        """The guide's one answer to the loss as the recipe's several."""
        return nullcontext() if self.guide is None else as_if_forwarded(self.guide, self.method.guide_forwards)

    def _stepping(self) -> AbstractContextManager[None]:
        """The backward pass, which steps most weights itself where the levers say so."""
        if not self.engine.levers.in_backward:
            return nullcontext()
        return stepped_in_backward(self.optimizer, self.optimizer.param_groups[0]["params"])

    def _heard(self, y: Tensor) -> Nets:
        """The networks; how often the guide tells the loss y is noted."""
        if self.guide is None:
            return self.nets

        def heard(x: Tensor) -> Tensor:
            logits = self.nets.guide(x)
            self.labels_right.append((logits.detach().argmax(1) == y).float().mean())
            return logits

        return replace(self.nets, guide=heard)

    def _spared(self) -> Nets:
        """The networks, the guide's batch-norm statistics staying as they are."""
        if (guide := self.guide) is None:
            return self.nets
        buffers = {name: buffer.clone() for name, buffer in guide.named_buffers()}
        return replace(self.nets, guide=self.at_precision(lambda x: functional_call(guide, buffers, (x,))))

    def _weights(self, names: Mapping[str, Weight]) -> dict[str, float]:
        size = self.schedule.batch_size
        return {name: weight_at(self.weights[name], self.progress, size) for name in names}

    def _terms(
        self, nets: Nets, student: Net, x: Tensor, x_adv: Tensor, y: Tensor, settings: Settings
    ) -> dict[str, Tensor]:
        chosen = {name: value for name, value in settings.items() if name not in ATTACK_SETTINGS}
        weights: dict[str, Any] = {**self._weights(self.method.weights), **chosen}
        return self.method.loss(replace(nets, student=self.at_precision(student)), x, x_adv, y, **weights)

    def _perturbed(
        self, student: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, settings: Settings
    ) -> AbstractContextManager[None]:
        """AWP around the block, once its warm-up is over."""
        awp, other = self.extras.awp, self.extras.awp_method
        if awp is None or self.progress < awp.warmup:
            return nullcontext()

        def loss(net: Net) -> Tensor:
            if other is not None:
                size = self.schedule.batch_size
                weights = {name: weight_at(weight, self.progress, size) for name, weight in awp.weights}
                terms = other.loss(Nets(self.at_precision(net)), x, x_adv, y, **weights)
                return torch.stack([term.mean() for term in terms.values()]).sum()
            return self.losses(net, x, x_adv, y, settings).mean()

        return perturbed(student, loss, awp.gamma)

    def state_dict(self) -> dict[str, Any]:
        """Everything a continuation needs, as tensors and plain values."""
        state = {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "history": self.history,
            "costs": self.costs,
            "best": self.best,
        }
        if self.guide is not None:
            state["guide"] = self.guide.state_dict()
        if self.extras.strategy is not None:
            state["strategy"] = self.extras.strategy.state_dict()
        if self.average is not None:
            state["average"] = {"net": self.average.net.state_dict(), "steps": self.average.steps}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"].cpu())
        self.step, self.history, self.best = state["step"], state["history"], state["best"]
        self.costs = state.get("costs") or [{} for _ in self.history]  # a checkpoint from before they were kept
        if self.guide is not None:
            self.guide.load_state_dict(state["guide"])
        if self.extras.strategy is not None:
            self.extras.strategy.load_state_dict(state["strategy"])
        if self.average is not None:
            self.average.net.load_state_dict(state["average"]["net"])
            self.average.steps = state["average"]["steps"]
