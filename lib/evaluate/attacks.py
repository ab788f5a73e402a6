"""The attacks that a network is measured under: each attack's function in one table, its settings as a value."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from lib.attacks.autoattack import STAGES as STAGES
from lib.attacks.autoattack import Result, standard
from lib.attacks.cw2 import cw2
from lib.attacks.jsma import jsma, published_target, wrong_target
from lib.attacks.pgd import Net, PerImage, Start, at_image, pgd, uniform_in_image
from lib.attacks.stopping import Trajectory
from lib.errors import UserError, check_type, choose, typed
from lib.losses import cross_entropy, margin

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits (N, K), y (N,)) -> (N,)
SMALLEST = {"epsilon": 0.5 / 255, "step_size": 0.05 / 255}  # less is a length in [0, 1] that was taken for one in 1/255
OFTEN_EQUAL = ("restarts", "seed", "crafted in")  # settings that most attacks of a table share


@dataclass(frozen=True)
class AttackSpec:
    """One attack at one setting. epsilon and step_size in [0, 1]; images = 0 means all test images.

    `stages` are AutoAttack's, all four or some. With `restarts` an image has to stay right in every one. `crafting` is
    the precision that x' is made in; judging is always fp32. `preset` is what the settings came from, and like `name`
    changes nothing of what is measured. UserError for an unknown attack, or a setting that makes no sense.
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
        attack = choose("attack", self.attack, ATTACKS)
        choose("crafting precision", self.crafting, dict.fromkeys(("fp32", "bf16")))
        for stage in self.stages:
            choose("AutoAttack stage", stage, dict.fromkeys(STAGES))
        numbers = (self.epsilon, self.step_size, self.steps, self.images, self.theta, self.gamma)
        problem = ""
        if self.crafting != "fp32" and (attack.loss is None or attack.freeze):
            problem = f"{self.attack} judges while it crafts, which is done in fp32; bf16 is for PGD judged at its end"
        elif not self.stages or len({*self.stages}) < len(self.stages):
            problem = f"stages wants one at least, each once, of {', '.join(STAGES)}; got {list(self.stages)}"
        elif not all(0 <= number < math.inf for number in numbers) or min(self.batch_size, self.restarts) < 1:
            problem = f"numbers must be >= 0, batch_size and restarts >= 1, got {self}"
        elif self.restarts > 1 and not attack.random_start:
            problem = f"restarts need a random start, {self.attack} has none of its own"
        elif not (self.steps or attack.steps):
            problem = f"the attack {self.attack} wants steps >= 1"
        elif attack.loss and self.epsilon and not self.step_size:
            problem = f"the attack {self.attack} wants a step_size > 0: with 0 it makes no step"
        elif attack.bounded and self.attack != "clean":
            lengths = {"epsilon": self.epsilon} | ({"step_size": self.step_size} if attack.loss else {})
            problem = next(filter(None, (wrong_unit(length, name) for name, length in lengths.items())), "")
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
        attack = ATTACKS[self.attack]
        details = f" ({', '.join(self.stages)})" if self.attack == "autoattack" and self.stages != STAGES else ""
        details += " on another network" if self.surrogate else ""
        shown = {
            "attack": attack.words.format(**vars(self)) + details,
            "radius": f"{255 * self.epsilon:.4g}/255" if attack.bounded else "–",
            "step": f"{255 * self.step_size:.4g}/255" if attack.bounded and not attack.steps else "–",
            "steps": self.steps or attack.steps,
            "restarts": self.restarts,
            "seed": self.seed,
            "crafted in": self.crafting,
        }
        return shown if self.attack != "clean" else {**dict.fromkeys(shown, "–"), "attack": shown["attack"]}


def changed(column: AttackSpec | dict[str, Any], settings: Mapping[str, Any]) -> AttackSpec:
    """The column, or one of these fields, with some settings replaced, each of its declared type, or a UserError.

    epsilon and step_size are in [0, 1]; as epsilon_255 and step_size_255 they are in 1/255.
    """
    base, given = column if isinstance(column, dict) else asdict(column), dict(settings)
    where = f"column {base['name']}"
    for name in ("epsilon", "step_size"):
        if (in_255 := f"{name}_255") in given:
            check_type(given[in_255], float, f"{where}: {in_255}")
            given[name] = given.pop(in_255) / 255
    return typed(AttackSpec, base | given, where)


def wrong_unit(length: float, name: str) -> str:
    """Why an epsilon or step_size in [0, 1] cannot be meant, as 16 or 0.0314 / 255, or ""; 0 may be meant."""
    if length == 0 or SMALLEST[name] <= length <= 1:
        return ""
    units = f"{name} is in [0, 1] and {name}_255 in 1/255: 8/255 is {8 / 255:.4f} or 8"
    return f"{name} is {length:.4g}, which is {255 * length:.4g}/255 and cannot be meant ({units})"


def describe_all(columns: Sequence[AttackSpec]) -> str:
    """The attacks with their settings in one text; what all of them share is at the end, once."""
    settings = [(column.name, column.settings()) for column in columns if column.attack != "clean"]
    shared = {key: settings[0][1][key] for key in OFTEN_EQUAL if len({each[key] for _, each in settings}) == 1}
    parts = [_in_words(name, {k: v for k, v in each.items() if k not in shared}) for name, each in settings]
    return "; ".join([*parts, "all: " + ", ".join(f"{key} {value}" for key, value in shared.items())])


def _in_words(name: str, settings: Mapping[str, Any]) -> str:
    return ", ".join([name, *(f"{key} {value}" for key, value in settings.items() if value != "–")])


def prefixes(net: Net, x: Tensor, y: Tensor, columns: Sequence[AttackSpec], generator: Generator) -> list[Tensor]:
    """x' of columns that are one PGD after different numbers of steps: the shorter are prefixes of the longest."""
    first, steps = columns[0], [column.steps for column in columns]
    attack = ATTACKS[first.attack]
    path = Trajectory(x, y, first.epsilon, at=steps, freeze=attack.freeze)
    objective = objective_of(path.listen(net), attack.loss or cross_entropy, y)
    settings: dict[str, Any] = {"epsilon": first.epsilon, "step_size": first.step_size, "steps": max(steps)}
    iterates = path.iterates(pgd(objective, x, **settings, generator=generator, criterion=path))
    return [iterates[n] for n in steps]


def objective_of(net: Net, loss: Loss, y: Tensor) -> PerImage:
    """loss(net(x'), y) per image."""
    return PerImage(lambda z, y: loss(net(z), y), (y,))


def autoattack(net: Net, x: Tensor, y: Tensor, column: AttackSpec, **options: Any) -> Result:
    """AutoAttack standard (Croce & Hein 2020), or some of its stages, on the whole set; `options` as of `standard`."""
    settings: dict[str, Any] = {"epsilon": column.epsilon, "seed": column.seed, "batch_size": column.batch_size}
    return standard(net, x, y, stages=column.stages, **settings, **options)


class EvaluationAttack(NamedTuple):
    """run(net, x, y, column, generator) -> x', and what holds of the attack in every column."""

    run: Callable[[Net, Tensor, Tensor, AttackSpec, Generator], Tensor]
    words: str = ""
    bounded: bool = True  # x' is held to epsilon
    random_start: bool = False
    steps: int | str = "its own"  # where the column has none; 0: it must have some
    loss: Loss | None = None  # of PGD with the column's steps
    freeze: bool = False  # an image of PGD stays where it is first misclassified


def _fgsm(
    net: Net, x: Tensor, y: Tensor, column: AttackSpec, generator: Generator, start: Start = uniform_in_image
) -> Tensor:
    settings: dict[str, Any] = {"epsilon": column.epsilon, "step_size": column.epsilon, "steps": 1, "start": start}
    return pgd(objective_of(net, cross_entropy, y), x, **settings, generator=generator)


def _steps(loss: Loss, words: str, freeze: bool = False) -> EvaluationAttack:
    words = f"PGD on {words}, {'an image stays where it is first wrong' if freeze else 'last iterate'}"
    run = lambda net, x, y, column, generator: prefixes(net, x, y, (column,), generator)[0]  # noqa: E731
    return EvaluationAttack(run, words, random_start=True, steps=0, loss=loss, freeze=freeze)


def _jsma(target: Callable[[Tensor, int, Generator], Tensor], words: str) -> EvaluationAttack:
    def run(net: Net, x: Tensor, y: Tensor, column: AttackSpec, generator: Generator) -> Tensor:
        towards = target(y, net(x[:1]).shape[1], generator)
        return jsma(net, x, towards, theta=column.theta, gamma=column.gamma)

    return EvaluationAttack(run, f"JSMA towards {words} (theta {{theta:g}}, gamma {{gamma:g}})", bounded=False)


def _torchattacks(name: str, words: str, **how: Any) -> EvaluationAttack:
    """torchattacks' attack as a second opinion, with our settings and from our start: an image's flag is ours."""

    def run(net: Net, x: Tensor, y: Tensor, column: AttackSpec, generator: Generator) -> Tensor:
        import torchattacks

        module = nn.Module().eval()  # it wants a module with a parameter, whose device is the images'
        module.forward, module.place = lambda z: net(z), nn.Parameter(x.new_zeros(1), requires_grad=False)
        own: dict[str, dict[str, Any]] = {
            "FGSM": {},
            "PGD": {"alpha": column.step_size, "steps": column.steps},
            "APGD": {"steps": column.steps, "seed": column.seed},  # its default of 10 is not AutoAttack's 100
        }
        shared = torch.cuda.default_generators[x.device.index] if x.is_cuda else torch.default_generator
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            shared.set_state(generator.get_state())
            x_adv: Tensor = getattr(torchattacks, name)(module, eps=column.epsilon, **own[name])(x, y)
            generator.set_state(shared.get_state())
        return x_adv.detach()

    return EvaluationAttack(run, f"{words} by torchattacks", **how)


ATTACKS = {
    "clean": EvaluationAttack(lambda net, x, *_: x, "none"),
    "fgsm": EvaluationAttack(partial(_fgsm, start=at_image), "FGSM from the image", steps=1),
    "fgsm_random": EvaluationAttack(_fgsm, "FGSM from a uniform start", random_start=True, steps=1),
    "pgd": _steps(cross_entropy, "the cross-entropy"),
    "pgd_frozen": _steps(cross_entropy, "the cross-entropy", freeze=True),
    "cw": _steps(margin, "the margin"),
    "cw_frozen": _steps(margin, "the margin", freeze=True),
    # FAT's, MAIL's and RAT's: an image that is wrong by more than kappa = 50 is left alone
    "cw_confidence": _steps(lambda z, y: margin(z, y).clamp(max=50.0), "the margin up to a confidence of 50"),
    "cw2": EvaluationAttack(
        lambda net, x, y, column, generator: cw2(net, x, y, steps=column.steps),
        "Carlini & Wagner L2, without a radius (c 0.1, confidence 0.01, batches of {batch_size})",
        bounded=False,
        steps=0,
    ),
    "autoattack": EvaluationAttack(lambda net, x, y, column, _: autoattack(net, x, y, column).x_adv, "AutoAttack"),
    "torchattacks_fgsm": _torchattacks("FGSM", "FGSM from the image", steps=1),
    "torchattacks_pgd": _torchattacks("PGD", "PGD on the cross-entropy, last iterate,", random_start=True, steps=0),
    "torchattacks_apgd": _torchattacks("APGD", "APGD on the cross-entropy", steps=0),
    "jsma": _jsma(wrong_target, "a wrong class, without a radius"),
    "jsma_as_published": _jsma(lambda y, *_: published_target(y), "the true class, as published: no attack"),
}
