"""Accuracy under each attack of a protocol, every number with its count and interval, every attack's result checked."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from scipy.stats import binomtest
from torch import Generator, Tensor, nn

from lib.attacks import PerImage, at_image, pgd
from lib.cw2 import cw2
from lib.data import Split, to_float
from lib.errors import UserError, choose
from lib.folding import folded
from lib.jsma import jsma, published_target, wrong_target
from lib.losses import cross_entropy, margin
from lib.methods import Net
from lib.train import mode
from lib.trajectory import snapshots
from lib.watch import UntilWrong

TOLERANCE = 1e-6  # how far float rounding may carry a pixel out of the ball
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")  # AutoAttack standard
VERSION = 2  # raised when an attack's code changes what an equal column measures


@dataclass(frozen=True)
class Column:
    """One attack at one setting. epsilon and step_size in [0, 1]; images = 0 means all test images.

    `stages` are AutoAttack's; a column that runs fewer than the standard four says so in its heading.

    Raises:
        UserError: an unknown attack or stage, or a number that makes no sense.
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

    def __post_init__(self) -> None:
        choose("attack", self.attack, ATTACKS)
        if not self.stages:
            raise UserError(f"column {self.name}: stages is empty; give at least one of {', '.join(STAGES)}")
        for stage in self.stages:
            choose("AutoAttack stage", stage, dict.fromkeys(STAGES))
        numbers = (self.epsilon, self.step_size, self.steps, self.images, self.theta, self.gamma)
        if not all(0 <= number < math.inf for number in numbers) or self.batch_size < 1:
            raise UserError(f"column {self.name} wants numbers >= 0 and batch_size >= 1, got {numbers}")
        if self.attack in ("pgd", "pgd_frozen", "cw", "cw_frozen", "cw2") and not self.steps:
            raise UserError(f"column {self.name}: the attack {self.attack} wants steps >= 1")

    def heading(self, images: int) -> str:
        """The column's name, with what was reduced against `images` test images and the full attack."""
        reduced = []
        if self.stages != STAGES:
            reduced.append("+".join(stage.upper() for stage in self.stages) + " only")
        if 0 < self.images < images:
            reduced.append(f"{self.images} images")
        return self.name + (f" ({', '.join(reduced)})" if reduced else "")


@dataclass(frozen=True)
class Accuracy:
    """k of n images classified correctly, which images (`flags`, one character each), under `column`."""

    column: Column
    k: int
    n: int
    flags: str = field(repr=False)

    @property
    def percent(self) -> float:
        """100 k / n."""
        return 100 * self.k / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson 95 % interval of the percentage."""
        return wilson(self.k, self.n)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the run store."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Accuracy":
        """What `to_json` was called on."""
        column = {**value["column"], "stages": tuple(value["column"]["stages"])}
        return cls(Column(**column), value["k"], value["n"], value["flags"])


def wilson(k: int, n: int) -> tuple[float, float]:
    """The Wilson 95 % interval of k successes in n trials, in percent."""
    low, high = binomtest(k, n).proportion_ci(0.95, method="wilson")
    return 100 * low, 100 * high


def evaluate(
    net: nn.Module, test: Split, columns: tuple[Column, ...], surrogate: nn.Module | None = None
) -> list[Accuracy]:
    """The accuracy of `net`, in eval mode, under every column's attack; its mode is restored afterwards.

    With a `surrogate` the images are made on it and scored on `net`: a transfer attack.

    Raises:
        UserError: an unknown attack, or more images than there are.
        RuntimeError: an attack left its ball or [0, 1], or gave a value that is not finite.
    """
    source = surrogate or net
    with mode(net, train=False), frozen(net), mode(source, train=False), frozen(source):
        found = [one for group in together(columns) for one in _measured(net, test, group, source)]
    return [next(accuracy for accuracy in found if accuracy.column == column) for column in columns]


def together(columns: tuple[Column, ...]) -> list[tuple[Column, ...]]:
    """The columns in groups that are measured at once: those that are one PGD after different numbers of steps."""
    groups: dict[Column, tuple[Column, ...]] = {}
    for column in columns:
        key = replace(column, name="", steps=1) if column.attack in STEPPED else column
        groups[key] = (*groups.get(key, ()), column)
    return list(groups.values())


def _measured(net: nn.Module, test: Split, group: tuple[Column, ...], source: nn.Module) -> list[Accuracy]:
    return [accuracy(net, test, group[0], source)] if len(group) == 1 else prefixes(net, test, group, source)


def prefixes(net: nn.Module, test: Split, columns: tuple[Column, ...], source: nn.Module) -> list[Accuracy]:
    """What `accuracy` finds for columns that differ in their steps alone, from one run of the longest."""
    first = columns[0]
    loss, freeze = STEPPED[first.attack]
    part = test.take(slice(0, first.images or len(test.labels)))
    x = to_float(part.images)
    found = snapshots(
        folded(source),
        x,
        part.labels,
        loss,
        epsilon=first.epsilon,
        step_size=first.step_size,
        at=[column.steps for column in columns],
        freeze=freeze,
        batch_size=first.batch_size,
        generator=Generator(x.device).manual_seed(first.seed),
    )
    return [_accuracy(column, _right(net, x, found[column.steps], part.labels, column)) for column in columns]


def accuracy(net: nn.Module, test: Split, column: Column, source: nn.Module | None = None) -> Accuracy:
    """The accuracy of `net` as it stands under one column's attack on `source` (itself); raises as `evaluate` does."""
    attack = ATTACKS[column.attack]
    with torch.no_grad():
        check_fits(column, len(test.labels), net(to_float(test.images[:1])).shape[1])
    part = test.take(slice(0, column.images or len(test.labels)))
    generator = Generator(test.images.device).manual_seed(column.seed)
    crafting = folded(source or net)  # the judging below is on the network itself
    flags = []
    for x, y in part.batches(len(part.labels) if attack.whole else column.batch_size):
        flags.append(_right(net, x, attack.run(crafting, x, y, column, generator), y, column))
    return _accuracy(column, torch.cat(flags))


def _right(net: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, column: Column) -> Tensor:
    """Which images the network itself, not its folded form, has right at x', (N,) bool; x' is checked first."""
    check_perturbation(x, x_adv, column.epsilon if ATTACKS[column.attack].bounded else math.inf, column.name)
    with torch.no_grad():
        logits = torch.cat([net(images) for images in x_adv.split(column.batch_size)])
    return logits.argmax(1) == y


def _accuracy(column: Column, right: Tensor) -> Accuracy:
    return Accuracy(column, int(right.sum()), len(right), "".join("01"[flag] for flag in right.tolist()))


def check_fits(column: Column, images: int, classes: int) -> None:
    """That a test split of so many images and classes can be measured under the column.

    Raises:
        UserError: it wants more images, or APGD-T more classes, whose loss needs four.
    """
    if column.images > images:
        raise UserError(
            f"column {column.name} wants {column.images} images, the test split has {images}; "
            f"settings: {{columns: {{{column.name}: {{images: ...}}}}}} says how many"
        )
    if column.attack == "autoattack" and "apgd-t" in column.stages and classes < 4:
        raise UserError(f"column {column.name}: AutoAttack's APGD-T wants at least 4 classes, there are {classes}")


def check_perturbation(x: Tensor, x_adv: Tensor, epsilon: float, name: str) -> None:
    """max|x_adv - x| <= epsilon and every pixel in [0, 1], to 1e-6.

    Raises:
        RuntimeError: not so; the attack is wrong, and a number from it would be too.
    """
    if not bool(torch.isfinite(x_adv).all()):
        raise RuntimeError(f"{name} made pixels that are not finite")
    distance, low, high = float((x_adv - x).abs().max()), float(x_adv.min()), float(x_adv.max())
    if distance > epsilon + TOLERANCE or low < -TOLERANCE or high > 1 + TOLERANCE:
        raise RuntimeError(f"{name} left its bounds: max|x'-x| {distance}, epsilon {epsilon}, pixels {low} to {high}")


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """No parameter of `net` requires a gradient inside the block."""
    before = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    net.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


def autoattack(net: Net, x: Tensor, y: Tensor, column: Column, generator: Generator) -> Tensor:
    """AutoAttack standard (Croce & Hein 2020), or some of its stages, by the authors' code as pyautoattack has it.

    Always the standard version's settings: 100 iterations, 9 targets (all wrong classes where there are fewer), 5,000
    queries, one restart. x is the whole set: between stages the images left over are packed into full batches again.
    """
    from pyautoattack import AutoAttack

    with torch.no_grad():
        classes = net(x[:1]).shape[1]
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):  # it re-seeds the global one
        attack = AutoAttack(net, norm="Linf", eps=column.epsilon, version="standard", device=x.device, seed=column.seed)
        attack.attacks_to_run = list(column.stages)
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classes - 1)
        return attack.run_standard_evaluation(x, y, batch_size=column.batch_size)[0].detach()


def _clean(net: Net, x: Tensor, y: Tensor, column: Column, generator: Generator) -> Tensor:
    return x


def _fgsm(net: Net, x: Tensor, y: Tensor, column: Column, generator: Generator) -> Tensor:
    e = column.epsilon
    return pgd(lambda z: cross_entropy(net(z), y), x, epsilon=e, step_size=e, steps=1, start=at_image)


def _fgsm_random(net: Net, x: Tensor, y: Tensor, column: Column, generator: Generator) -> Tensor:
    e = column.epsilon
    return pgd(lambda z: cross_entropy(net(z), y), x, epsilon=e, step_size=e, steps=1, generator=generator)


def _steps(loss: Callable[[Tensor, Tensor], Tensor], freeze: bool) -> Callable[..., Tensor]:
    """PGD on loss(logits, y); with `freeze` an image stays where it is first misclassified."""

    def run(net: Net, x: Tensor, y: Tensor, column: Column, generator: Generator) -> Tensor:
        watch = UntilWrong(x, y, column.epsilon) if freeze else None
        heard = watch.listen(net) if watch else net
        return pgd(
            PerImage(lambda z, y: loss(heard(z), y), (y,)),
            x,
            epsilon=column.epsilon,
            step_size=column.step_size,
            steps=column.steps,
            generator=generator,
            rule=watch,
        )

    return run


def _cw2(net: Net, x: Tensor, y: Tensor, column: Column, generator: Generator) -> Tensor:
    return cw2(net, x, y, steps=column.steps)


def _jsma(net: Net, x: Tensor, y: Tensor, column: Column, generator: Generator) -> Tensor:
    with torch.no_grad():
        classes = net(x[:1]).shape[1]
    return jsma(net, x, wrong_target(y, classes, generator), theta=column.theta, gamma=column.gamma)


def _jsma_as_published(net: Net, x: Tensor, y: Tensor, column: Column, generator: Generator) -> Tensor:
    return jsma(net, x, published_target(y), theta=column.theta, gamma=column.gamma)


STEPPED = {  # PGD on a loss; with True an image stays where it is first misclassified
    "pgd": (cross_entropy, False),
    "pgd_frozen": (cross_entropy, True),
    "cw": (margin, False),
    "cw_frozen": (margin, True),
}


class EvaluationAttack(NamedTuple):
    """run(net, x, y, column, generator) -> x'; is x' held to epsilon; is x the whole set and not a batch."""

    run: Callable[[Net, Tensor, Tensor, Column, Generator], Tensor]
    bounded: bool = True
    whole: bool = False


ATTACKS = {
    "clean": EvaluationAttack(_clean),
    "fgsm": EvaluationAttack(_fgsm),
    "fgsm_random": EvaluationAttack(_fgsm_random),
    **{name: EvaluationAttack(_steps(*how)) for name, how in STEPPED.items()},
    "cw2": EvaluationAttack(_cw2, bounded=False),
    "autoattack": EvaluationAttack(autoattack, whole=True),
    "jsma": EvaluationAttack(_jsma, bounded=False),
    "jsma_as_published": EvaluationAttack(_jsma_as_published, bounded=False),
}
