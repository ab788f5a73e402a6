"""A run as a value: everything that decides its result, and nothing else. Equal values, equal digests, one training."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from lib.errors import choose
from lib.methods import METHODS, Method, Weight
from lib.methods.strategy import StrategySpec
from lib.train import Schedule
from lib.train.devices import Parallel
from lib.train.weights import AWP

RECIPE = 7  # raised when the training code changes what an equal spec computes; 7: CAT, GAIRAT as their code


@dataclass(frozen=True)
class DataSpec:
    """What is trained on: a data set by name and content; train_images = 0 means all; held_out of them never train."""

    name: str
    sha256: str
    train_images: int
    held_out: int


@dataclass(frozen=True)
class GivenWeights:
    """A network whose weights come from a file, known by the file's SHA-256 and never by its path."""

    model: str
    sha256: str


@dataclass(frozen=True)
class RunSpec:
    """One training run. Radii and step sizes in [0, 1]; weights are resolved, a method's defaults included.

    `selection` is the split that PGD-10 picks the epoch on, `selection_images` how many of it (0: all). `guide` is the
    model of a second network that is trained beside it, `average` the decay of an average of the weights (0: none).
    `parallel` is whose batch statistics it has on several devices; their number is in it where it changes a result.
    """

    data: DataSpec
    model: str
    method: str
    weights: tuple[tuple[str, Weight], ...]
    teacher: "RunSpec | GivenWeights | None"
    schedule: Schedule
    epsilon: float
    step_size: float
    attack_steps: int
    selection: str
    selection_images: int
    seed: int
    precision: str = "fp32"
    max_steps: int = 0
    guide: str = ""
    strategy: StrategySpec | None = None
    awp: AWP | None = None
    average: float = 0.0
    recipe: int = RECIPE
    parallel: Parallel | None = None

    @cached_property
    def digest(self) -> str:
        """What the run is known by, in the store and as a teacher."""
        return digest_of(self.plain())

    def plain(self) -> dict[str, Any]:
        """The run as plain values; without `parallel`, its own or a teacher's, where that is None, as before it was."""
        return asdict(self, dict_factory=lambda pairs: {k: v for k, v in pairs if (k, v) != ("parallel", None)})


def method_of(name: str) -> Method:
    """The method of this name; raises UserError for an unknown one."""
    return choose("method", name, METHODS)


def digest_of(value: Any) -> str:
    """Twelve hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]
