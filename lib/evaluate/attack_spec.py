"""An attack with all of its settings as a value, and the accuracy under it with every image's flag."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from scipy.stats import binomtest

from lib.errors import UserError, check_type, choose, typed
from lib.evaluate.attacks import ATTACKS, STAGES, STEPPED

IN_WORDS = {
    "clean": "none",
    "fgsm": "FGSM from the image",
    "fgsm_random": "FGSM from a uniform start",
    "pgd": "PGD on the cross-entropy, last iterate",
    "pgd_frozen": "PGD on the cross-entropy, an image stays where it is first wrong",
    "cw": "PGD on the margin, last iterate",
    "cw_frozen": "PGD on the margin, an image stays where it is first wrong",
    "cw_confidence": "PGD on the margin up to a confidence of 50, last iterate",
    "cw2": "Carlini & Wagner L2, without a radius (c 0.1, confidence 0.01, batches of {batch_size})",
    "autoattack": "AutoAttack",
    "jsma": "JSMA towards a wrong class, without a radius (theta {theta:g}, gamma {gamma:g})",
    "jsma_as_published": "JSMA towards the true class, as published: no attack (theta {theta:g}, gamma {gamma:g})",
}
OFTEN_EQUAL = ("restarts", "seed", "crafted in")  # settings that most attacks of a table share


@dataclass(frozen=True)
class AttackSpec:
    """One attack at one setting. epsilon and step_size in [0, 1]; images = 0 means all test images.

    `stages` are AutoAttack's, all four or some. With `restarts` an image has to stay right in every one. `crafting` is
    the precision that x' is made in; judging is always fp32. `preset` is what the settings came from, and like `name`
    changes nothing of what is measured.

    Raises:
        UserError: an unknown attack, stage or precision, or a number that makes no sense.
    """

    name: str
    attack: str
    epsilon: float = 0.0
    step_size: float = 0.0
    steps: int = 0
    images: int = 0
    seed: int = 0
    batch_size: int = 200
    stages: tuple[str, ...] = STAGES
    theta: float = 0.1  # JSMA: what a chosen pixel is raised by
    gamma: float = 0.05  # JSMA: the share of the pixel values it may touch
    surrogate: str = ""  # the digest of the network that x' is made on, where that is not the one it is scored on
    restarts: int = 1
    crafting: str = "fp32"
    preset: str = ""

    def __post_init__(self) -> None:
        choose("attack", self.attack, ATTACKS)
        choose("crafting precision", self.crafting, dict.fromkeys(("fp32", "bf16")))
        for stage in self.stages:
            choose("AutoAttack stage", stage, dict.fromkeys(STAGES))
        stepped = self.attack in STEPPED
        numbers = (self.epsilon, self.step_size, self.steps, self.images, self.theta, self.gamma)
        problem = ""
        if self.crafting != "fp32" and (not stepped or STEPPED[self.attack][1]):
            problem = f"{self.attack} judges while it crafts, which is done in fp32; bf16 is for PGD judged at its end"
        elif not self.stages:
            problem = f"stages is empty; give at least one of {', '.join(STAGES)}"
        elif not all(0 <= number < math.inf for number in numbers) or min(self.batch_size, self.restarts) < 1:
            problem = f"numbers must be >= 0, batch_size and restarts >= 1, got {self}"
        elif self.restarts > 1 and not (stepped or self.attack == "fgsm_random"):
            problem = f"restarts need a random start, {self.attack} has none of its own"
        elif (stepped or self.attack == "cw2") and not self.steps:
            problem = f"the attack {self.attack} wants steps >= 1"
        if problem:
            raise UserError(f"column {self.name}: {problem}")

    def __str__(self) -> str:
        return _in_words(self.name, self.settings())

    @property
    def what(self) -> "AttackSpec":
        """The column without its names: equal where the same is measured."""
        return replace(self, name="", preset="")

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits, equal where the same is measured."""
        return hashlib.sha256(repr(self.what).encode()).hexdigest()[:12]

    def settings(self) -> dict[str, Any]:
        """What a reader has to know of the number, in words and in 1/255; "–" where the attack has no such setting."""
        attacked, some = self.attack != "clean", self.attack == "autoattack" and self.stages != STAGES
        details = f" ({', '.join(self.stages)})" if some else ""
        details += " on another network" if self.surrogate else ""
        own_steps = {"clean": "–", "fgsm": 1, "fgsm_random": 1}.get(self.attack, "its own")
        return {
            "attack": IN_WORDS[self.attack].format(**vars(self)) + details,
            "radius": f"{255 * self.epsilon:.4g}/255" if attacked and ATTACKS[self.attack].bounded else "–",
            "step": f"{255 * self.step_size:.4g}/255" if self.attack in STEPPED else "–",
            "steps": self.steps or own_steps,
            "restarts": self.restarts if attacked else "–",
            "seed": self.seed if attacked else "–",
            "crafted in": self.crafting if attacked else "–",
        }


def changed(column: AttackSpec, settings: Mapping[str, Any]) -> AttackSpec:
    """The column with some settings replaced, each of its declared type.

    epsilon and step_size are in [0, 1]; as epsilon_255 and step_size_255 they are in 1/255.

    Raises:
        UserError: an unknown setting, a wrong type or a number that makes no sense.
    """
    given, where = dict(settings), f"column {column.name}"
    for name in ("epsilon", "step_size"):
        if (in_255 := f"{name}_255") in given:
            check_type(given[in_255], float, f"{where}: {in_255}")
            given[name] = given.pop(in_255) / 255
    return typed(AttackSpec, asdict(column) | given, where)


def describe_all(columns: Sequence[AttackSpec]) -> str:
    """The attacks with their settings in one text; what all of them share is at the end, once."""
    settings = [(column.name, column.settings()) for column in columns if column.attack != "clean"]
    shared = {key: settings[0][1][key] for key in OFTEN_EQUAL if len({each[key] for _, each in settings}) == 1}
    parts = [_in_words(name, {k: v for k, v in each.items() if k not in shared}) for name, each in settings]
    return "; ".join([*parts, "all: " + ", ".join(f"{key} {value}" for key, value in shared.items())])


def _in_words(name: str, settings: Mapping[str, Any]) -> str:
    return ", ".join([name, *(f"{key} {value}" for key, value in settings.items() if value != "–")])


class Share:
    """k of n, in percent and with its interval."""

    k: int
    n: int

    @property
    def percent(self) -> float:
        """100 k / n."""
        return 100 * self.k / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson 95 % interval of the percentage."""
        return wilson(self.k, self.n)


@dataclass(frozen=True)
class Accuracy(Share):
    """k of n images classified correctly, which images (`flags`, one character each), under `column`.

    `stages` has AutoAttack's flags after each of its stages, by name.
    """

    column: AttackSpec
    k: int
    n: int
    flags: str = field(repr=False)
    stages: dict[str, str] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the run store."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Accuracy":
        """What `to_json` was called on."""
        column = {**value["column"], "stages": tuple(value["column"]["stages"])}
        return cls(AttackSpec(**column), value["k"], value["n"], value["flags"], value["stages"])


def wilson(k: int, n: int) -> tuple[float, float]:
    """The Wilson 95 % interval of k successes in n trials, in percent."""
    low, high = binomtest(k, n).proportion_ci(0.95, method="wilson")
    return 100 * low, 100 * high
