"""What is measured and what was found: an attack with all of its settings, and which images it left right."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from scipy.stats import binomtest

from lib.errors import UserError, choose
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
    "cw2": "Carlini & Wagner L2, without a radius",
    "autoattack": "AutoAttack",
    "jsma": "JSMA towards a wrong class, without a radius",
    "jsma_as_published": "JSMA towards the true class, as published: no attack",
}


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
        if self.crafting != "fp32" and (self.attack not in STEPPED or STEPPED[self.attack][1]):
            raise UserError(
                f"column {self.name}: {self.attack} judges while it crafts, which is done in fp32; "
                "bf16 is for PGD that is judged at its end"
            )
        if not self.stages:
            raise UserError(f"column {self.name}: stages is empty; give at least one of {', '.join(STAGES)}")
        for stage in self.stages:
            choose("AutoAttack stage", stage, dict.fromkeys(STAGES))
        numbers = (self.epsilon, self.step_size, self.steps, self.images, self.theta, self.gamma)
        if not all(0 <= number < math.inf for number in numbers) or min(self.batch_size, self.restarts) < 1:
            raise UserError(f"column {self.name} wants numbers >= 0, batch_size and restarts >= 1, got {self}")
        if self.restarts > 1 and self.attack not in (*STEPPED, "fgsm_random"):
            raise UserError(f"column {self.name}: restarts go with a random start; {self.attack} has none of its own")
        if (self.attack in STEPPED or self.attack == "cw2") and not self.steps:
            raise UserError(f"column {self.name}: the attack {self.attack} wants steps >= 1")

    def __str__(self) -> str:
        return self.said(self.settings())

    def said(self, settings: Mapping[str, Any]) -> str:
        """The column's name with those settings that it has."""
        told = {key: value for key, value in settings.items() if value not in ("", "–")}
        return ", ".join([self.name, *(f"{key} {value}" for key, value in told.items())])

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
        attack, ball = ATTACKS[self.attack], self.attack != "clean"
        stages = f" ({', '.join(self.stages)})" if self.attack == "autoattack" and self.stages != STAGES else ""
        if self.attack.startswith("jsma"):
            stages = f" (theta {self.theta:g}, gamma {self.gamma:g})"
        if self.attack == "cw2":
            stages = f" (c 0.1, confidence 0.01, batches of {self.batch_size})"
        own_steps = {"clean": "–", "fgsm": 1, "fgsm_random": 1}.get(self.attack, "its own")
        return {
            "attack": IN_WORDS[self.attack] + stages + (" on another network" if self.surrogate else ""),
            "radius": f"{255 * self.epsilon:.4g}/255" if attack.bounded and ball else "–",
            "step": f"{255 * self.step_size:.4g}/255" if self.attack in STEPPED else "–",
            "steps": self.steps or own_steps,
            "restarts": self.restarts if ball else "–",
            "seed": self.seed if ball else "–",
            "crafted in": self.crafting if ball else "–",
        }


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


def describe_all(columns: Sequence[AttackSpec]) -> str:
    """The columns with their settings in one text; what all attacks share is said once."""
    settings = {column.name: column.settings() for column in columns if column.attack != "clean"}
    usual = ("restarts", "seed", "crafted in")
    values = {key: {str(each[key]) for each in settings.values()} for key in usual}
    shared = {key: one for key, (one, *more) in ((key, sorted(found)) for key, found in values.items()) if not more}
    parts = [
        column.said({key: value for key, value in settings[column.name].items() if key not in shared})
        for column in columns
        if column.name in settings
    ]
    return "; ".join([*parts, "all: " + ", ".join(f"{key} {value}" for key, value in shared.items())])


def wilson(k: int, n: int) -> tuple[float, float]:
    """The Wilson 95 % interval of k successes in n trials, in percent."""
    low, high = binomtest(k, n).proportion_ci(0.95, method="wilson")
    return 100 * low, 100 * high
