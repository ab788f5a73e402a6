"""What stands around a method: a guide, a strategy, weight perturbation, an average of the weights."""

from dataclasses import dataclass

from torch import nn

from lib.methods import Method
from lib.methods.strategy import Strategy
from lib.train.weights import AWP


@dataclass(frozen=True)
class TrainingExtras:
    """What stands around a method's step without being part of its loss."""

    guide: nn.Module | None = None  # a second network, trained beside the student
    strategy: Strategy | None = None  # picks the attack's settings per image
    awp: AWP | None = None
    awp_method: Method | None = None  # whose loss the perturbation maximises, where it is not the method's own
    average: float = 0.0  # the decay of an average of the weights, which is then what is scored and kept
