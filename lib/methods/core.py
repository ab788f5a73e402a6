"""What a method is: an objective for the attack, a loss for training, and the recipe that goes with them."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lib import attacks
from lib.attacks.pgd import Net
from lib.attacks.stopping import StoppingCriterion
from lib.errors import UserError

Terms = dict[str, Tensor]


def _not_given(x: Tensor) -> Tensor:
    raise UserError("this method needs a teacher, or trains a guide beside its target, and none was given")


@dataclass(frozen=True)
class Nets:
    """The networks of a step: the student (the target), a frozen teacher, a guide trained beside the student."""

    student: Net
    teacher: Net = _not_given
    guide: Net = _not_given


@dataclass(frozen=True)
class Piecewise:
    """A weight that is values[i] from shares[i - 1] of the training on; one value more than shares."""

    shares: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Ramp:
    """A weight that goes from `before` to `after` in a straight line between two shares of the training."""

    first: float
    last: float
    before: float
    after: float


@dataclass(frozen=True)
class NominalBatch:
    """A weight that is the schedule's batch size, also where the last batch is smaller."""


Weight = float | Piecewise | Ramp | NominalBatch


def constant(net: Net, x: Tensor, unless: float | Tensor = 0.0) -> Tensor:
    """net(x) without a gradient, unless a term of this weight needs one; batch-norm statistics move all the same."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and (isinstance(unless, Tensor) or unless != 0)):
        return net(x)


def weight_at(weight: Weight, progress: float, batch_size: int) -> float:
    """The number that a weight is at `progress` in [0, 1] of a training with this batch size."""
    if isinstance(weight, Piecewise):
        return weight.values[sum(progress >= share for share in weight.shares)]
    if isinstance(weight, Ramp):
        share = (progress - weight.first) / (weight.last - weight.first)
        return weight.before + (weight.after - weight.before) * min(max(share, 0.0), 1.0)
    return float(batch_size) if isinstance(weight, NominalBatch) else weight


@dataclass(frozen=True)
class Method:
    """One way to train: loss(nets, x, x_adv, y, **weights) returns {term: (N,)}, of which the mean is minimised.

    objective(nets, x, y) returns the function x' -> (N,) that the attack maximises; None trains on clean images. The
    loss sees student and guide in train mode. A guide in "train_at_every_step" is forwarded once per attack, and its
    batch-norm statistics move as if it had been forwarded at each of the attack's steps. criterion(x, y, epsilon,
    **criterion_weights) decides which images go on during the attack, and what it observes is given to the loss.
    """

    title: str
    objective: Callable[[Nets, Tensor, Tensor], attacks.Objective] | None
    loss: Callable[..., Terms]
    weights: Mapping[str, Weight] = field(default_factory=dict)
    start: attacks.Start = attacks.gaussian
    attack_mode: Literal["eval", "train"] = "eval"  # the student's, during the attack
    attack_noise: float = 0.0  # standard deviation of what is added to the student's convolutions during the attack
    needs_teacher: bool = False
    trains_guide: bool = False
    guide_mode: Literal["eval", "train", "train_at_every_step"] = "train"  # the guide's, during the attack
    guide_forwards: int = 1  # of the guide in the recipe's loss: its batch-norm statistics move as often
    guided: bool = False  # whether the teacher is a guide, to be followed epoch by epoch
    beside_class_means: tuple[str, ...] = ()  # weights that the paper set beside terms that are means over its classes
    attack_label: Callable[[Nets, Tensor, Tensor], Tensor] | None = None  # (nets, x, y) -> (N,), the attack's y
    criterion: Callable[..., StoppingCriterion] | None = None
    criterion_weights: Mapping[str, Weight] = field(default_factory=dict)
    jitter: attacks.Start = attacks.at_image  # after every step of an attack that has a criterion

    @property
    def extended(self) -> bool:
        """Whether its step is more than attack and loss: a guide, noise, a criterion, or labels of its own."""
        return bool(self.trains_guide or self.attack_noise or self.attack_label or self.criterion)

    @property
    def code(self) -> str:
        """Twelve hexadecimal digits of the source of objective, loss, label and criterion, not of what they call."""
        parts = filter(None, (self.objective, self.loss, self.attack_label, self.criterion))
        return hashlib.sha256("".join(map(_source, parts)).encode()).hexdigest()[:12]

    @property
    def all_weights(self) -> dict[str, Weight]:
        """The defaults of every number that a row may set."""
        return {**self.weights, **self.criterion_weights}


def _source(part: Any) -> str:
    try:
        return inspect.getsource(getattr(part, "func", part))
    except (OSError, TypeError):  # typed into a console, say
        return repr(part)


class Recorder:
    """A network that keeps the images it was given and the logits it returned, detached."""

    def __init__(self, net: Net) -> None:
        self.net, self.outputs = net, list[tuple[Tensor, Tensor]]()

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        self.outputs.append((x, logits.detach()))
        return logits

    def output_of(self, x: Tensor) -> Tensor:
        """The logits (N, C) of the first forward of this very tensor."""
        return next(logits for images, logits in self.outputs if images is x)
