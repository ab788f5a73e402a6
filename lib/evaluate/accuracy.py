"""The accuracy of a network under each attack of a protocol, every attack's result checked."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lib.attacks.fast import Engine
from lib.attacks.folding import folded, same_answers
from lib.attacks.pgd import Net
from lib.attacks.watched import Watched
from lib.data import Split, to_float
from lib.errors import UserError
from lib.evaluate.attacks import ATTACKS, AttackSpec, autoattack, prefixes
from lib.evaluate.significance import Accuracy
from lib.models.modes import frozen, mode

FEW = 8  # images on which a folded network is compared with the network
FOUR = 4  # classes that the loss of AutoAttack's APGD-T compares
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


def evaluate(
    net: nn.Module,
    test: Split,
    columns: tuple[AttackSpec, ...],
    surrogate: nn.Module | None = None,
    resources: Resources | None = None,
) -> list[Accuracy]:
    """The accuracy of `net`, in eval mode and left as it was, under attacks on itself, or on the `surrogate` if any."""
    source, resources = net if surrogate is None else surrogate, resources or Resources()
    results = dict[AttackSpec, Accuracy]()
    with mode(net, train=False), frozen(net), mode(source, train=False), frozen(source):
        classes = net(to_float(test.images[:1])).shape[1]
        for column in columns:
            check_fits(column, len(test.labels), classes)
        for group in together(columns):
            part = test.take(slice(0, group[0].images or len(test.labels)))
            if group[0].attack == "autoattack":
                made = [_by_stages(net, part, group[0], source, resources, list(results.values()))]
            else:
                made = _batchwise(net, part, group, source)
            for result in made:
                results[result.column] = result
                resources.found(result)
    return [results[column] for column in columns]


def accuracy(net: nn.Module, test: Split, column: AttackSpec) -> Accuracy:
    """`evaluate` of one column."""
    return evaluate(net, test, (column,))[0]


def together(columns: tuple[AttackSpec, ...]) -> list[tuple[AttackSpec, ...]]:
    """The columns in groups that are measured at once: those that are one PGD after different numbers of steps."""
    groups: dict[AttackSpec, tuple[AttackSpec, ...]] = {}
    for column in columns:
        key = replace(column.what, steps=1) if ATTACKS[column.attack].loss else column
        groups[key] = (*groups.get(key, ()), column)
    return list(groups.values())


def _batchwise(net: nn.Module, part: Split, group: tuple[AttackSpec, ...], source: nn.Module) -> list[Accuracy]:
    """A group's attack on batch after batch; with restarts an image has to stay right in every one.

    An image that the attack could not follow, for want of a finite gradient, was not attacked: it is not right.
    """
    first, attack = group[0], ATTACKS[group[0].attack]
    view, generator = _attack_view(source, first, part), Generator(part.images.device).manual_seed(first.seed)
    right = torch.ones(len(group), len(part.labels), dtype=torch.bool, device=part.labels.device)
    blind = torch.zeros_like(part.labels, dtype=torch.bool)
    for _ in range(first.restarts):
        flags, lost = [], []
        for x, y in part.batches(first.batch_size):
            on = Watched(view, x)
            made = prefixes(on, x, y, group, generator) if attack.loss else [attack.run(on, x, y, first, generator)]
            flags.append(torch.stack([judged(net, x, *one, y) for one in zip(made, group, strict=True)]))
            lost.append(on.blind)
        right, blind = right & torch.cat(flags, 1), blind | torch.cat(lost)
    return [_accuracy(column, flags, blind) for column, flags in zip(group, right, strict=True)]


def _by_stages(
    net: nn.Module, part: Split, column: AttackSpec, source: nn.Module, resources: Resources, known: list[Accuracy]
) -> Accuracy:
    """AutoAttack on the whole set, with the flags after each stage; a transfer's end alone is judged on `net`."""
    x, y, own, clean = to_float(part.images), part.labels, source is net, None
    for flags in (a.flags for a in known if own and a.column.attack == "clean" and a.n >= len(y)):
        clean = torch.tensor([flag == "1" for flag in flags[: len(y)]], device=y.device)
    folder = resources.kept / column.what.digest if resources.kept else None
    options = {"judge": source, "clean": clean, "folder": folder, "notify": resources.notify}
    result = autoattack(_attack_view(source, column, part), x, y, column, **options)
    stages = {stage: _accuracy(column, robust).flags for stage, robust in result.robust.items()} if own else {}
    return replace(_accuracy(column, judged(net, x, result.x_adv, column, y), result.blind), stages=stages)


def _attack_view(net: nn.Module, column: AttackSpec, part: Split) -> Net:
    """The network as the column's attack sees it: folded, where that is the same function on the first images."""
    same = same_answers(net, folded(net), to_float(part.images[:FEW]))
    return Engine("fast" if same else "plain", column.crafting).attack_view(net)


def judged(net: nn.Module, x: Tensor, x_adv: Tensor, column: AttackSpec, y: Tensor) -> Tensor:
    """Which images the network itself, not its folded form, has right at x', (N,) bool; x' is checked first."""
    check_perturbation(x, x_adv, column.epsilon if ATTACKS[column.attack].bounded else math.inf, column.name)
    with torch.no_grad():
        logits = torch.cat([net(images) for images in x_adv.split(column.batch_size)])
    check_logits(logits, y)
    return logits.argmax(1) == y


def _accuracy(column: AttackSpec, right: Tensor, blind: Tensor | None = None) -> Accuracy:
    lost = () if blind is None else tuple(blind.nonzero().flatten().tolist())
    right = right if blind is None else right & ~blind
    return Accuracy(column, int(right.sum()), len(right), "".join("01"[flag] for flag in right.tolist()), blind=lost)


def check_fits(column: AttackSpec, images: int, classes: int) -> None:
    """UserError where the column wants more images than there are, or more classes: APGD-T's loss needs four."""
    setting = f"settings: {{columns: {{{column.preset or column.name}: {{"
    if column.images > images:
        raise UserError(
            f"column {column.name} wants {column.images} images, the test split has {images}; "
            f"{setting}images: {images}}}}}}} takes all"
        )
    if classes < 2:
        raise UserError("there is one class, so no image can be wrong: an accuracy wants two at least")
    if column.attack == "autoattack" and "apgd-t" in column.stages and classes < FOUR:
        left = ", ".join(stages_for(column, classes))
        way = f"{setting}stages: [{left}]}}}}}} leaves it out" if left else "no stage of the column is left"
        raise UserError(f"column {column.name}: AutoAttack's APGD-T wants 4 classes, there are {classes}; {way}")


def stages_for(column: AttackSpec, classes: int) -> tuple[str, ...]:
    """AutoAttack's stages of the column that can be had with so many classes."""
    return tuple(stage for stage in column.stages if classes >= FOUR or stage != "apgd-t")


def check_perturbation(x: Tensor, x_adv: Tensor, epsilon: float, name: str) -> None:
    """RuntimeError unless max|x_adv - x| <= epsilon and pixels lie in [0, 1], to 1e-6: a number would be wrong too."""
    if not bool(torch.isfinite(x_adv).all()):
        raise RuntimeError(f"{name} made pixels that are not finite")
    distance, low, high = float((x_adv - x).abs().max()), float(x_adv.min()), float(x_adv.max())
    if distance > epsilon + TOLERANCE or low < -TOLERANCE or high > 1 + TOLERANCE:
        raise RuntimeError(f"{name} left its bounds: max|x'-x| {distance}, epsilon {epsilon}, pixels {low} to {high}")


def check_logits(logits: Any, y: Tensor, highest: int = 0) -> None:
    """UserError unless the outputs are finite floats, (N, C), with a class for every label, the `highest` too."""
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(shape, tuple) or len(shape) != 2 or len(logits) != len(y):
        way = "of several outputs let its forward return the logits alone, and keep the batch's dimension"
        raise UserError(f"the network's outputs must be a tensor of the shape ({len(y)}, classes), got {shape}: {way}")
    if not logits.is_floating_point():
        raise UserError(f"the network's outputs must be logits, floats, got {logits.dtype}")
    if wrong := int((~torch.isfinite(logits)).any(1).sum()):
        raise UserError(f"the network's outputs are not finite (NaN or infinite) on {wrong} of {len(y)} images")
    if shape[1] < 2:
        raise UserError("the network has 1 outputs, a classifier has two at least: for a single z give it (0, z)")
    if (highest := max(int(y.max()), highest)) >= shape[1]:
        raise UserError(f"the network has {shape[1]} outputs, the labels go up to {highest}")
