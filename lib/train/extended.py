"""What is composed with the step of lib/train/loop.py: a guide, a strategy, AWP, an average, and extended methods.

A step: crop and flip; the strategy learns and picks settings; the attack, guide and student in the method's modes,
until its criterion stops it; the weights perturbed; terms, backward, optimiser; the weights back; their average.
"""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lib.errors import UserError
from lib.methods import Method, Net, Nets, weight_at
from lib.methods.core import Recorder
from lib.methods.strategy import ATTACK_SETTINGS, Settings, Strategy
from lib.models.modes import mode
from lib.train.devices import mean, on_gradients
from lib.train.loop import Training
from lib.train.weights import AWP, EMA, Loss, as_if_forwarded, freeze_bn, jittered, perturbed


@dataclass(frozen=True)
class TrainingExtras:
    """What a row may compose with any method."""

    guide: nn.Module | None = None  # a second network, trained beside the student
    strategy: Strategy | None = None  # picks the attack's settings per image
    awp: AWP | None = None
    awp_method: Method | None = None  # whose loss the perturbation maximises, where it is not the method's own
    average: float = 0.0  # the decay of an average of the weights, which is then what is scored and kept


NONE = TrainingExtras()


def build_training(
    student: Any, teacher: Any, method: Method, *rest: Any, extras: TrainingExtras = NONE, **more: Any
) -> Training:
    """A Training, or an ExtendedTraining where there are extras or the method's step is more than attack and loss."""
    if method.extended or extras != NONE:
        return ExtendedTraining(student, teacher, method, *rest, extras=extras, **more)
    return Training(student, teacher, method, *rest, **more)


@dataclass(eq=False, repr=False, kw_only=True)
class ExtendedTraining(Training):
    """A Training with extras, or of a method that is more than attack and loss; the `Target` of strategies."""

    extras: TrainingExtras = NONE

    def __post_init__(self) -> None:
        self.guide = self.extras.guide
        if self.guide is not None:
            self.guide.train()
        elif self.method.trains_guide:
            raise UserError(f"{self.method.title} trains a guide beside its target, and none was given")
        super().__post_init__()
        if self.extras.strategy is not None:
            self.parts["strategy"] = self.extras.strategy
            if self.parallel is not None and self.extras.strategy.net is not None:
                on_gradients(self.extras.strategy.net, mean)  # every rank has that of the whole batch
        self.average = EMA(self.student, self.extras.average) if self.extras.average else None
        if self.average is not None:
            self.parts["average"], self.kept = self.average, self.average.net

    @property
    def lr_share(self) -> float:
        """The present learning rate as a share of the schedule's."""
        return float(self.optimizer.param_groups[0]["lr"]) / self.schedule.lr

    def notes(self, score: float) -> dict[str, Any]:
        """What the strategy picked in the epoch, and what followed it."""
        strategy = self.extras.strategy
        if strategy is None:
            return super().notes(score)
        strategy.after_epoch(self, score)
        return {"strategy": strategy.report()} | super().notes(score)

    def craft(self, x: Tensor, y: Tensor) -> tuple[Tensor, Settings]:
        """What the student trains on in place of x; a strategy learns from the batch and picks its settings first."""
        strategy = self.extras.strategy
        if strategy is None:
            return self.craft_under(x, y, {})
        strategy.learn(self, x, y)
        x_adv, settings = self.craft_under(x, y, strategy.settings(self, x))
        return strategy.trained_on(self, x, x_adv), settings

    def craft_under(self, x: Tensor, y: Tensor, settings: Settings) -> tuple[Tensor, Settings]:
        """x' of the method's attack under `settings`, and these with what the method's criterion observed."""
        method, strategy = self.method, self.extras.strategy
        if method.objective is None:
            return x, settings
        start = method.start if strategy is None else strategy.start(self, method.start)
        chosen: dict[str, Any] = {name: value for name, value in settings.items() if name in ATTACK_SETTINGS}
        self.student.train(method.attack_mode == "train")
        with ExitStack() as during:
            if self.guide is not None:  # its one forward counts as many as the recipe has
                times = self.attack.keywords["steps"] if method.guide_mode == "train_at_every_step" else 1
                during.enter_context(mode(self.guide, method.guide_mode != "eval"))
                during.enter_context(as_if_forwarded(self.guide, times))
            if method.attack_noise:
                during.enter_context(jittered(self.student, method.attack_noise, self.generator))
            nets = self.views(self.engine.attack_view)
            if self.guide is not None and self.guide.training:  # it is only forwarded for labels, as it is
                nets = replace(nets, guide=self.nets.guide)
            label = y if method.attack_label is None else method.attack_label(nets, x, y)
            if method.criterion is not None:
                radius, weights = chosen.get("epsilon", self.epsilon), self.current_weights(method.criterion_weights)
                criterion = chosen["criterion"] = method.criterion(x, label, radius, **weights)
                nets = replace(nets, student=criterion.listen(nets.student))
                chosen["jitter"] = method.jitter
            x_adv = self.maximise(method.objective(nets, x, label), x, start, **chosen)
        return x_adv, settings | (criterion.observed() if method.criterion is not None else {})

    def update(self, x: Tensor, x_adv: Tensor, y: Tensor, observed: Settings) -> dict[str, Tensor]:
        """One step of the optimiser on the perturbed weights; the average takes in what comes of it."""
        with self._perturbed(self.student, x, x_adv, y, observed), ExitStack() as during:
            recorder = Recorder(self.nets.guide)
            if self.guide is not None:  # its one forward counts as many as the recipe has, and its hits are noted
                during.enter_context(as_if_forwarded(self.guide, self.method.guide_forwards))
                during.callback(setattr, self, "nets", self.nets)
                self.nets = replace(self.nets, guide=recorder)
            terms = super().update(x, x_adv, y, _for_loss(observed))
        self.labels_right += [(logits.argmax(1) == y).float().mean() for _, logits in recorder.outputs]
        if self.average is not None:
            self.average.update(self.student)
        return terms

    def losses(self, student: Net, x: Tensor, x_adv: Tensor, y: Tensor, settings: Settings) -> Tensor:
        """The method's loss per image (b,), with `student` in the student's place and in the mode it is in."""
        nets = replace(self.nets, student=self.at_precision(student))
        if self.guide is not None:
            nets = replace(nets, guide=self.at_precision(freeze_bn(self.guide)))
        weights = {**self.current_weights(self.method.weights), **_for_loss(settings)}
        return torch.stack(list(self.method.loss(nets, x, x_adv, y, **weights).values())).sum(0)

    def after_step(
        self, x: Tensor, x_adv: Tensor, y: Tensor, settings: Settings, weight_decay: bool, loss: Loss | None = None
    ) -> nn.Module:
        """w - lr (grad + wd w) as a copy, lr as it is now, grad that of the mean of `loss` or of the method's own."""
        copy = self.engine.lay_out(deepcopy(self.student)).train()
        parameters, group = list(copy.parameters()), self.optimizer.param_groups[0]
        decay = group["weight_decay"] if weight_decay else 0.0
        with self._perturbed(copy, x, x_adv, y, settings), torch.enable_grad():
            each = loss(self.at_precision(copy)) if loss else self.losses(copy, x, x_adv, y, settings)
            slopes = torch.autograd.grad(each.mean(), parameters, allow_unused=True, materialize_grads=True)
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter.data.sub_(group["lr"] * (slope + decay * parameter.data))
        return copy

    def _perturbed(
        self, student: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, settings: Settings
    ) -> AbstractContextManager[None]:
        """AWP in the block, once its warm-up is over."""
        awp, other = self.extras.awp, self.extras.awp_method
        if awp is None or self.progress < awp.warmup:
            return nullcontext()

        def loss(net: Net) -> Tensor:
            if other is None:
                return self.losses(net, x, x_adv, y, settings).mean()
            weights = {name: weight_at(weight, self.progress, self.schedule.batch_size) for name, weight in awp.weights}
            terms = other.loss(Nets(self.at_precision(net)), x, x_adv, y, **weights)
            return torch.stack([term.mean() for term in terms.values()]).sum()

        return perturbed(student, loss, awp.gamma)


def _for_loss(settings: Settings) -> Settings:
    return {name: value for name, value in settings.items() if name not in ATTACK_SETTINGS}
