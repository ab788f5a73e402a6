"""What a row may compose with any method: a guide, a strategy, weight perturbation, an average of the weights."""

from dataclasses import dataclass

from torch import nn

from lib.methods import Method
from lib.methods.strategy import Strategy
from lib.train.weights import AWP


@dataclass(frozen=True)
class TrainingExtras:
    """The parts of a training that are not the method's loss; true where there is any."""

    guide: nn.Module | None = None  # a second network, trained beside the student
    strategy: Strategy | None = None  # picks the attack's settings per image
    awp: AWP | None = None
    awp_method: Method | None = None  # whose loss the perturbation maximises, where it is not the method's own
    average: float = 0.0  # the decay of an average of the weights, which is then what is scored and kept

    def __bool__(self) -> bool:
        return bool(self.average) or any(part is not None for part in (self.guide, self.strategy, self.awp))
