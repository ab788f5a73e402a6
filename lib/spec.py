"""A run as a value: everything that decides its result, and nothing else. Equal values, equal digests, one training."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, get_args, get_origin

from lib.errors import UserError
from lib.methods import Weight
from lib.strategies import StrategySpec
from lib.train import Schedule
from lib.weights import AWP

RECIPE = 5  # raised when the training code changes what an equal spec computes


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

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the canonical JSON."""
        return digest_of(asdict(self))


def digest_of(value: Any) -> str:
    """Twelve hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def typed(kind: Any, given: dict[str, Any], where: str) -> Any:
    """The dataclass `kind` made from `given`, every name known and every value of its field's type.

    A whole number serves where a float is wanted, a list where a tuple is.

    Raises:
        UserError: an unknown name or a wrong type; the sentence gives the valid names or the type.
    """
    known = {f.name: f.type for f in fields(kind)}
    for name, value in given.items():
        if name not in known:
            raise UserError(f"{where} has no {name!r}; choose from: {', '.join(known)}")
        check_type(value, known[name], f"{where}: {name}")
    converted = {n: tuple(v) if isinstance(v, list) and get_origin(known[n]) is tuple else v for n, v in given.items()}
    try:
        return kind(**converted)
    except TypeError as error:
        raise UserError(f"{where} is incomplete: {error}") from error


def check_type(value: Any, wanted: Any, where: str) -> None:
    """That `value` is a `wanted`: bool, int, float (an int will do), str, or a list, tuple or dict of these.

    Raises:
        UserError: it is not; text that looks like a number says how YAML wants it written.
    """
    if wanted is Any:
        return
    origin, arguments = get_origin(wanted) or wanted, get_args(wanted)
    accepted = {float: (int, float), tuple: (list, tuple)}.get(origin, (origin,))
    wrong = not isinstance(value, accepted) or (isinstance(value, bool) and origin is not bool)
    if wrong:
        hint = " (YAML reads 1e-3 as text: write 0.001)" if origin is float and isinstance(value, str) else ""
        raise UserError(f"{where} wants {origin.__name__}, got {value!r} ({type(value).__name__}){hint}")
    if origin in (list, tuple) and arguments:
        for item in value:
            check_type(item, arguments[0], where)
    if origin is dict and arguments:
        for key, item in value.items():
            check_type(key, arguments[0], where)
            check_type(item, arguments[1], f"{where}[{key!r}]")
