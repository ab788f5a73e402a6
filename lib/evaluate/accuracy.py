"""The accuracy of a network under each attack of a protocol, every attack's result checked."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from lib.attacks.fast import Engine
from lib.attacks.folding import folded, same_answers
from lib.attacks.pgd import Net
from lib.data import Split, to_float
from lib.errors import UserError
from lib.evaluate.attack_spec import Accuracy, AttackSpec
from lib.evaluate.attacks import ATTACKS, STEPPED, autoattack, prefixes
from lib.evaluate.inputs import check_logits
from lib.models.modes import frozen, mode

FEW = 8  # images on which a folded network is compared with the network
TOLERANCE = 1e-6  # how far float rounding may carry a pixel out of the ball
VERSION = 3  # raised when an attack's code changes what an equal column measures


@dataclass(frozen=True)
class Resources:
    """A folder from which a long attack goes on when it was killed, and who is called on the way.

    `notify` is called with the finished share of an AutoAttack, `found` with each column's accuracy when it is there.
    """

    kept: Path | None = None
    notify: Callable[[float], None] = lambda share: None
    found: Callable[[Accuracy], None] = lambda accuracy: None


class Clean:
    """Which images a network has right without an attack: needed by several columns, computed once per image."""

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
    source, resources, results = surrogate or net, resources or Resources(), []
    with mode(net, train=False), frozen(net), mode(source, train=False), frozen(source):
        clean = Clean(net, test)
        for group in together(columns):
            for result in _measured(net, test, group, source, resources, clean):
                results.append(result)
                resources.found(result)
    return [next(result for result in results if result.column == column) for column in columns]


def accuracy(net: nn.Module, test: Split, column: AttackSpec, source: nn.Module | None = None) -> Accuracy:
    """The accuracy of `net` as it stands under one column's attack on `source` (itself); raises as `evaluate` does."""
    return _measured(net, test, (column,), source or net, Resources(), Clean(net, test))[0]


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
    first = group[0]
    with torch.no_grad():
        classes = net(to_float(test.images[:1])).shape[1]
    for column in group:
        check_fits(column, len(test.labels), classes)
    if first.attack == "clean":
        return [_accuracy(first, clean.right(first))]
    part = test.take(slice(0, first.images or len(test.labels)))
    view = _attack_view(source, first, to_float(part.images[:FEW]))
    if first.attack == "autoattack":
        return [_by_stages(net, part, first, source, view, resources, clean)]
    return _batchwise(net, part, group, view)


def _batchwise(net: nn.Module, part: Split, group: tuple[AttackSpec, ...], view: Net) -> list[Accuracy]:
    """A group's attack on batch after batch; with restarts an image has to stay right in every one."""
    first, generator = group[0], Generator(part.images.device).manual_seed(group[0].seed)
    right = {column: torch.ones_like(part.labels, dtype=torch.bool) for column in group}
    for _ in range(first.restarts):
        flags: dict[AttackSpec, list[Tensor]] = {column: [] for column in group}
        for x, y in part.batches(first.batch_size):
            if first.attack in STEPPED:
                made = prefixes(view, x, y, group, generator)
            else:
                made = [ATTACKS[first.attack].run(view, x, y, first, generator)]
            for column, x_adv in zip(group, made, strict=True):
                flags[column].append(judged(net, x, x_adv, y, column))
        for column in group:
            right[column] &= torch.cat(flags[column])
    return [_accuracy(column, right[column]) for column in group]


def _by_stages(
    net: nn.Module, part: Split, column: AttackSpec, source: nn.Module, view: Net, resources: Resources, clean: Clean
) -> Accuracy:
    """AutoAttack on the whole set, with the flags after each stage; a transfer's end alone is judged on `net`."""
    x, y = to_float(part.images), part.labels
    result = autoattack(
        view,
        x,
        y,
        column,
        judge=source,
        clean=clean.right(column) if source is net else None,
        folder=resources.kept / column.what.digest if resources.kept else None,
        notify=resources.notify,
    )
    stages = {} if source is not net else {stage: _as_flags(robust) for stage, robust in result.robust.items()}
    return replace(_accuracy(column, judged(net, x, result.x_adv, y, column)), stages=stages)


def _attack_view(net: nn.Module, column: AttackSpec, x: Tensor) -> Net:
    """The network as the column's attack sees it: folded, where that is the same function on images like x."""
    execution = "fast" if same_answers(net, folded(net), x) else "plain"
    return Engine(execution, column.crafting).attack_view(net)


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
