"""What a method is: an objective for the attack, a loss for training, and the recipe that goes with them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lib import attacks
from lib.errors import UserError

Net = Callable[[Tensor], Tensor]
Terms = dict[str, Tensor]


def _no_teacher(x: Tensor) -> Tensor:
    raise UserError("this method needs a teacher, and none was given")


@dataclass(frozen=True)
class Nets:
    """The networks of a step: the student in training, and the frozen teacher where the method has one."""

    student: Net
    teacher: Net = _no_teacher


@dataclass(frozen=True)
class FromProgress:
    """A weight that is `before` until `share` of the training has passed, and `after` from then on."""

    share: float
    before: float
    after: float


@dataclass(frozen=True)
class NominalBatch:
    """A weight that is the schedule's batch size, also where the last batch is smaller."""


Weight = float | FromProgress | NominalBatch


def weight_at(weight: Weight, progress: float, batch_size: int) -> float:
    """The number that a weight is at `progress` in [0, 1] of a training with this batch size."""
    if isinstance(weight, FromProgress):
        return weight.after if progress >= weight.share else weight.before
    return float(batch_size) if isinstance(weight, NominalBatch) else weight


@dataclass(frozen=True)
class Method:
    """One way to train: `loss` is called as loss(nets, x, x_adv, y, **weights) and returns {term: (N,)}.

    `objective(nets, x, y)` gives the function x' -> (N,) that the attack maximises; None trains on clean images.
    `attack_mode` is the student's mode while the attack looks at it; the loss always sees it in train mode.
    """

    title: str
    objective: Callable[[Nets, Tensor, Tensor], attacks.Objective] | None
    loss: Callable[..., Terms]
    weights: Mapping[str, Weight] = field(default_factory=dict)
    start: attacks.Start = attacks.gaussian
    attack_mode: Literal["eval", "train"] = "eval"
    needs_teacher: bool = False
