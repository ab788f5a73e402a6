"""The attacks that a column can name: attack(net, x, y, column, generator) -> x'."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor

from lib.attacks.autoattack import STAGES as STAGES
from lib.attacks.autoattack import Result, standard
from lib.attacks.cw2 import cw2
from lib.attacks.jsma import jsma, published_target, wrong_target
from lib.attacks.pgd import Net, PerImage, at_image, pgd
from lib.attacks.stopping import Trajectory
from lib.losses import cross_entropy, margin

if TYPE_CHECKING:
    from lib.evaluate.attack_spec import AttackSpec

CONFIDENCE = 50.0  # FAT's, MAIL's and RAT's kappa


def up_to_confidence(logits: Tensor, y: Tensor) -> Tensor:
    """min(max_{j != y} z_j - z_y, 50), (N,): an image that is wrong by more is left alone."""
    return margin(logits, y).clamp(max=CONFIDENCE)


def autoattack(net: Net, x: Tensor, y: Tensor, column: "AttackSpec", **options: Any) -> Result:
    """AutoAttack standard (Croce & Hein 2020), or some of its stages; `options` are those of `standard`.

    x is the whole set: between stages the images left over are packed into full batches again.
    """
    settings: dict[str, Any] = {"epsilon": column.epsilon, "seed": column.seed, "batch_size": column.batch_size}
    return standard(net, x, y, stages=column.stages, **settings, **options)


def prefixes(net: Net, x: Tensor, y: Tensor, columns: Sequence["AttackSpec"], generator: Generator) -> list[Tensor]:
    """x' of columns that are one PGD after different numbers of steps, from one run of the longest.

    Equal to a run per column: the shorter attacks are prefixes of the longest.
    """
    first, steps = columns[0], [column.steps for column in columns]
    loss, freeze = STEPPED[first.attack]
    path = Trajectory(x, y, first.epsilon, at=steps, freeze=freeze)
    logits = path.listen(net)
    end = pgd(
        PerImage(lambda z, y: loss(logits(z), y), (y,)),
        x,
        epsilon=first.epsilon,
        step_size=first.step_size,
        steps=max(steps),
        generator=generator,
        criterion=path,
    )
    iterates = path.iterates(end)
    return [iterates[n] for n in steps]


def _clean(net: Net, x: Tensor, y: Tensor, column: "AttackSpec", generator: Generator) -> Tensor:
    return x


def _fgsm(net: Net, x: Tensor, y: Tensor, column: "AttackSpec", generator: Generator) -> Tensor:
    e = column.epsilon
    return pgd(lambda z: cross_entropy(net(z), y), x, epsilon=e, step_size=e, steps=1, start=at_image)


def _fgsm_random(net: Net, x: Tensor, y: Tensor, column: "AttackSpec", generator: Generator) -> Tensor:
    e = column.epsilon
    return pgd(lambda z: cross_entropy(net(z), y), x, epsilon=e, step_size=e, steps=1, generator=generator)


def _pgd(net: Net, x: Tensor, y: Tensor, column: "AttackSpec", generator: Generator) -> Tensor:
    return prefixes(net, x, y, (column,), generator)[0]


def _autoattack(net: Net, x: Tensor, y: Tensor, column: "AttackSpec", generator: Generator) -> Tensor:
    return autoattack(net, x, y, column).x_adv


def _cw2(net: Net, x: Tensor, y: Tensor, column: "AttackSpec", generator: Generator) -> Tensor:
    return cw2(net, x, y, steps=column.steps)


def _jsma(net: Net, x: Tensor, y: Tensor, column: "AttackSpec", generator: Generator) -> Tensor:
    with torch.no_grad():
        classes = net(x[:1]).shape[1]
    return jsma(net, x, wrong_target(y, classes, generator), theta=column.theta, gamma=column.gamma)


def _jsma_as_published(net: Net, x: Tensor, y: Tensor, column: "AttackSpec", generator: Generator) -> Tensor:
    return jsma(net, x, published_target(y), theta=column.theta, gamma=column.gamma)


STEPPED = {  # PGD on a loss; with True an image stays where it is first misclassified
    "pgd": (cross_entropy, False),
    "pgd_frozen": (cross_entropy, True),
    "cw": (margin, False),
    "cw_frozen": (margin, True),
    "cw_confidence": (up_to_confidence, False),
}


class EvaluationAttack(NamedTuple):
    """run(net, x, y, column, generator) -> x'; is x' held to epsilon."""

    run: Callable[[Net, Tensor, Tensor, "AttackSpec", Generator], Tensor]
    bounded: bool = True


ATTACKS = {
    "clean": EvaluationAttack(_clean),
    "fgsm": EvaluationAttack(_fgsm),
    "fgsm_random": EvaluationAttack(_fgsm_random),
    **dict.fromkeys(STEPPED, EvaluationAttack(_pgd)),
    "cw2": EvaluationAttack(_cw2, bounded=False),
    "autoattack": EvaluationAttack(_autoattack),
    "jsma": EvaluationAttack(_jsma, bounded=False),
    "jsma_as_published": EvaluationAttack(_jsma_as_published, bounded=False),
}
