"""What is composed with the step of lib/train/loop.py: a guide, a strategy, AWP, an average, and extended methods.

The order of a step: crop and flip; the strategy learns and picks settings; the attack, guide and student in the
method's modes, until its criterion stops it; the weights perturbed; the method's terms, backward, the optimiser; the
perturbation taken back; the average of the weights.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lib.methods import Net, Nets, weight_at
from lib.methods.core import Recorder, Terms
from lib.methods.strategy import ATTACK_SETTINGS, Settings
from lib.models.modes import mode
from lib.train.loop import Training
from lib.train.weights import EMA, as_if_forwarded, freeze_bn, jittered, perturbed


class ExtendedTraining(Training):
    """A Training with extras, or of a method whose attack is more than PGD on its objective.

    It is what a strategy sees as its `Target`.
    """

    def __init__(self, student: nn.Module, *parts: Any, **settings: Any) -> None:
        super().__init__(student, *parts, **settings)
        if self.guide is not None:
            self.nets = replace(self.nets, guide=self.at_precision(self.guide.train()))
        self.average = EMA(student, self.extras.average) if self.extras.average else None

    @property
    def lr_share(self) -> float:
        """The present learning rate as a share of the schedule's."""
        return float(self.optimizer.param_groups[0]["lr"]) / self.schedule.lr

    @property
    def kept(self) -> nn.Module:
        """The student, or the average of its weights."""
        return self.average.net if self.average else self.student

    def notes(self, score: float) -> dict[str, Any]:
        """What the strategy picked in the epoch, and what followed it."""
        strategy, notes = self.extras.strategy, dict[str, Any]()
        if strategy is not None:
            strategy.after_epoch(self, score)
            notes["strategy"] = strategy.report()
        return notes | super().notes(score)

    def epoch(self) -> dict[str, float]:
        """One pass over the data, the guide's label hits counted anew."""
        self.labels_right = []
        return super().epoch()

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
        with self._guide_in_attack(), self._noise():
            nets = self.attack_views()
            label = y if method.attack_label is None else method.attack_label(nets, x, y)
            criterion = None
            if method.criterion is not None:
                radius, weights = chosen.get("epsilon", self.epsilon), self.current_weights(method.criterion_weights)
                criterion = chosen["criterion"] = method.criterion(x, label, radius, **weights)
                nets = replace(nets, student=criterion.listen(nets.student))
            x_adv = self.maximise(method.objective(nets, x, label), x, start, **chosen)
        return x_adv, settings | (criterion.observed() if criterion is not None else {})

    def attack_views(self) -> Nets:
        """The networks as the attack sees them; a guide in train mode is only forwarded for labels, as it is."""
        nets = super().attack_views()
        if self.guide is None or self.guide.training:
            return nets
        return replace(nets, guide=self.engine.attack_view(self.guide))

    def update(self, x: Tensor, x_adv: Tensor, y: Tensor, observed: Settings) -> Terms:
        """One step of the optimiser on the perturbed weights; the average takes in what comes of it."""
        given = {name: value for name, value in observed.items() if name not in ATTACK_SETTINGS}
        with self._perturbed(self.student, x, x_adv, y, observed), self._count_label_hits(y):
            terms = super().update(x, x_adv, y, given)
        if self.average is not None:
            self.average.update(self.student)
        return terms

    def losses(self, student: Net, x: Tensor, x_adv: Tensor, y: Tensor, settings: Settings) -> Tensor:
        """The method's loss per image (b,), with `student` in the student's place and in the mode it is in."""
        given = {name: value for name, value in settings.items() if name not in ATTACK_SETTINGS}
        nets = replace(self.nets, student=self.at_precision(student))
        if self.guide is not None:
            nets = replace(nets, guide=self.at_precision(freeze_bn(self.guide)))
        terms = self.method.loss(nets, x, x_adv, y, **{**self.current_weights(self.method.weights), **given})
        return torch.stack(list(terms.values())).sum(0)

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

    def parts(self) -> dict[str, Any]:
        """What has a state of its own: the guide, the strategy and the average too."""
        more = {"guide": self.guide, "strategy": self.extras.strategy, "average": self.average}
        return super().parts() | {name: part for name, part in more.items() if part is not None}

    def _noise(self) -> AbstractContextManager[None]:
        """The student's weights as the method's attack wants them."""
        std = self.method.attack_noise
        return jittered(self.student, std, self.generator) if std else nullcontext()

    @contextmanager
    def _guide_in_attack(self) -> Iterator[None]:
        """The guide in the method's mode, its one forward counting as many as the recipe has."""
        if self.guide is None:
            yield
            return
        times = self.attack.keywords["steps"] if self.method.guide_mode == "train_at_every_step" else 1
        with mode(self.guide, self.method.guide_mode != "eval"), as_if_forwarded(self.guide, times):
            yield

    @contextmanager
    def _count_label_hits(self, y: Tensor) -> Iterator[None]:
        """The guide's one forward counts as the recipe's several, and how often its argmax is y is noted."""
        if self.guide is None:
            yield
            return
        nets, recorder = self.nets, Recorder(self.nets.guide)
        self.nets = replace(nets, guide=recorder)
        try:
            with as_if_forwarded(self.guide, self.method.guide_forwards):
                yield
        finally:
            self.nets = nets
        self.labels_right += [(logits.argmax(1) == y).float().mean() for _, logits in recorder.outputs]

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
            size = self.schedule.batch_size
            weights = {name: weight_at(weight, self.progress, size) for name, weight in awp.weights}
            terms = other.loss(Nets(self.at_precision(net)), x, x_adv, y, **weights)
            return torch.stack([term.mean() for term in terms.values()]).sum()

        return perturbed(student, loss, awp.gamma)


Training.extended = ExtendedTraining
