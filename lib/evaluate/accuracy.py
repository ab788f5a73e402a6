"""The accuracy of a network under each attack of a protocol, every attack's result checked."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from lib.attacks.autoattack import standard
from lib.attacks.engine import Engine, in_precision
from lib.attacks.folding import folded, same_answers
from lib.attacks.levers import STANDARD
from lib.attacks.trajectory import snapshots
from lib.data import Split, to_float
from lib.errors import UserError
from lib.evaluate.attack_spec import Accuracy, AttackSpec
from lib.evaluate.attacks import ATTACKS, STEPPED
from lib.evaluate.inputs import check_logits
from lib.models.modes import frozen, mode

FEW = 8  # images that tell whether a folded network is the network
TOLERANCE = 1e-6  # how far float rounding may carry a pixel out of the ball
VERSION = 3  # raised when an attack's code changes what an equal column measures


@dataclass(frozen=True)
class Resources:
    """What a long attack is done with: a folder that it goes on from when it was killed, and processes on a CPU.

    `notify` hears the finished share of an AutoAttack, `found` each column's accuracy as soon as it is there.
    """

    kept: Path | None = None
    workers: int = 1
    notify: Callable[[float], None] = lambda share: None
    found: Callable[[Accuracy], None] = lambda accuracy: None


class Clean:
    """Which images a network has right as they are: asked for by several columns, computed once per image."""

    def __init__(self, net: nn.Module, test: Split) -> None:
        self.net, self.test, self.known = net, test, torch.empty(0, dtype=torch.bool)

    def right(self, column: AttackSpec) -> Tensor:
        """(n,) bool for the column's images."""
        n, known = column.images or len(self.test.labels), len(self.known)
        if known < n:
            part = self.test.take(slice(known, n))
            x = to_float(part.images)
            self.known = torch.cat([self.known.to(x.device), judged(self.net, x, x, part.labels, column)])
        return self.known[:n]


def evaluate(
    net: nn.Module,
    test: Split,
    columns: tuple[AttackSpec, ...],
    surrogate: nn.Module | None = None,
    resources: Resources | None = None,
) -> list[Accuracy]:
    """The accuracy of `net`, in eval mode, under every column's attack; its mode is restored afterwards.

    With a `surrogate` the images are made on it and scored on `net`: a transfer attack.

    Raises:
        UserError: an unknown attack, or more images than there are.
        RuntimeError: an attack left its ball or [0, 1], or gave a value that is not finite.
    """
    source, resources, found = surrogate or net, resources or Resources(), []
    with mode(net, train=False), frozen(net), mode(source, train=False), frozen(source):
        clean = Clean(net, test)
        for group in together(columns):
            for one in _measured(net, test, group, source, resources, clean):
                found.append(one)
                resources.found(one)
    return [next(accuracy for accuracy in found if accuracy.column == column) for column in columns]


def together(columns: tuple[AttackSpec, ...]) -> list[tuple[AttackSpec, ...]]:
    """The columns in groups that are measured at once: those that are one PGD after different numbers of steps."""
    groups: dict[AttackSpec, tuple[AttackSpec, ...]] = {}
    for column in columns:
        key = replace(column.what, steps=1) if column.attack in STEPPED else column
        groups[key] = (*groups.get(key, ()), column)
    return list(groups.values())


def _measured(
    net: nn.Module, test: Split, group: tuple[AttackSpec, ...], source: nn.Module, resources: Resources, clean: Clean
) -> list[Accuracy]:
    with torch.no_grad():
        classes = net(to_float(test.images[:1])).shape[1]
    for column in group:
        check_fits(column, len(test.labels), classes)
    if group[0].attack in STEPPED:
        return prefixes(net, test, group, source)
    if group[0].attack == "clean":
        return [_accuracy(group[0], clean.right(group[0]))]
    if group[0].attack == "autoattack":
        return [by_stages(net, test, group[0], source, resources, clean)]
    return [accuracy(net, test, group[0], source)]


def by_stages(
    net: nn.Module, test: Split, column: AttackSpec, source: nn.Module, resources: Resources, clean: Clean
) -> Accuracy:
    """What `accuracy` finds for AutoAttack, with the flags after each of its stages; it goes on where it was killed.

    Transfers judge the end alone: the stages attack the surrogate.
    """
    part = test.take(slice(0, column.images or len(test.labels)))
    x, y = to_float(part.images), part.labels
    found = standard(
        _attacked(source, column, x),
        x,
        y,
        epsilon=column.epsilon,
        seed=column.seed,
        batch_size=column.batch_size,
        stages=column.stages,
        judge=source,
        clean=clean.right(column) if source is net else None,
        folder=resources.kept / column.what.digest if resources.kept else None,
        workers=resources.workers,
        notify=resources.notify,
    )
    stages = {} if source is not net else {stage: _as_flags(robust) for stage, robust in found.robust.items()}
    return replace(_accuracy(column, judged(net, x, found.x_adv, y, column)), stages=stages)


def prefixes(net: nn.Module, test: Split, columns: tuple[AttackSpec, ...], source: nn.Module) -> list[Accuracy]:
    """What `accuracy` finds for columns that differ in their steps alone, from one run of the longest."""
    first = columns[0]
    loss, freeze = STEPPED[first.attack]
    part = test.take(slice(0, first.images or len(test.labels)))
    x = to_float(part.images)
    generator = Generator(x.device).manual_seed(first.seed)
    right = {column: torch.ones_like(part.labels, dtype=torch.bool) for column in columns}
    for _ in range(first.restarts):
        found = snapshots(
            _attacked(source, first, x),
            x,
            part.labels,
            loss,
            epsilon=first.epsilon,
            step_size=first.step_size,
            at=[column.steps for column in columns],
            freeze=freeze,
            batch_size=first.batch_size,
            generator=generator,
        )
        for column in columns:
            right[column] &= judged(net, x, found[column.steps], part.labels, column)
    return [_accuracy(column, flags) for column, flags in right.items()]


def accuracy(net: nn.Module, test: Split, column: AttackSpec, source: nn.Module | None = None) -> Accuracy:
    """The accuracy of `net` as it stands under one column's attack on `source` (itself); raises as `evaluate` does."""
    attack = ATTACKS[column.attack]
    with torch.no_grad():
        check_fits(column, len(test.labels), net(to_float(test.images[:1])).shape[1])
    part = test.take(slice(0, column.images or len(test.labels)))
    generator = Generator(test.images.device).manual_seed(column.seed)
    crafting = _attacked(
        source or net, column, to_float(test.images[:FEW])
    )  # judging is on the network itself, in fp32
    size = len(part.labels) if attack.whole else column.batch_size
    right = torch.ones_like(part.labels, dtype=torch.bool)
    for _ in range(column.restarts):
        parts = part.batches(size)
        right &= torch.cat([judged(net, x, attack.run(crafting, x, y, column, generator), y, column) for x, y in parts])
    return _accuracy(column, right)


def _attacked(net: nn.Module, column: AttackSpec, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The network as the column's attack sees it, for images like x: folded, where that is the same function."""
    if not same_answers(net, folded(net), x[:FEW]):
        return in_precision(net, column.crafting)
    return Engine(replace(STANDARD, bf16=column.crafting == "bf16")).seen(net, x)


def judged(net: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, column: AttackSpec) -> Tensor:
    """Which images the network itself, not its folded form, has right at x', (N,) bool; x' is checked first.

    Raises:
        UserError: its outputs are no logits for these labels.
        RuntimeError: x' is not what the column allows.
    """
    check_perturbation(x, x_adv, column.epsilon if ATTACKS[column.attack].bounded else math.inf, column.name)
    with torch.no_grad():
        logits = torch.cat([net(images) for images in x_adv.split(column.batch_size)])
    check_logits(logits, y)
    return logits.argmax(1) == y


def _accuracy(column: AttackSpec, right: Tensor) -> Accuracy:
    return Accuracy(column, int(right.sum()), len(right), _as_flags(right))


def _as_flags(right: Tensor) -> str:
    return "".join("01"[flag] for flag in right.tolist())


def check_fits(column: AttackSpec, images: int, classes: int) -> None:
    """That a test split of so many images and classes can be measured under the column.

    Raises:
        UserError: it wants more images, or APGD-T more classes, whose loss needs four.
    """
    if column.images > images:
        raise UserError(
            f"column {column.name} wants {column.images} images, the test split has {images}; "
            f"settings: {{columns: {{{column.preset or column.name}: {{images: ...}}}}}} says how many"
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
