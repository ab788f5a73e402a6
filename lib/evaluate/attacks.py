"""The attacks that a column can name: attack(net, x, y, column, generator) -> x'."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor

from lib.attacks.autoattack import STAGES as STAGES
from lib.attacks.autoattack import standard
from lib.attacks.cw2 import cw2
from lib.attacks.jsma import jsma, published_target, wrong_target
from lib.attacks.pgd import PerImage, at_image, pgd
from lib.attacks.stopping import UntilWrong
from lib.losses import cross_entropy, margin
from lib.methods import Net

if TYPE_CHECKING:
    from lib.evaluate.attack_spec import AttackSpec

CONFIDENCE = 50.0  # FAT's, MAIL's and RAT's kappa


def up_to_confidence(logits: Tensor, y: Tensor) -> Tensor:
    """min(max_{j != y} z_j - z_y, 50), (N,): an image that is wrong by more is left alone."""
    return margin(logits, y).clamp(max=CONFIDENCE)


def autoattack(net: Net, x: Tensor, y: Tensor, column: "AttackSpec", generator: Generator) -> Tensor:
    """AutoAttack standard (Croce & Hein 2020), or some of its stages; its flags are those of the authors' code.

    Always the standard version's settings: 100 iterations, 9 targets (all wrong classes where there are fewer), 5,000
    queries, one restart. x is the whole set: between stages the images left over are packed into full batches again.
    """
    found = standard(
        net,
        x,
        y,
        epsilon=column.epsilon,
        seed=column.seed,
        batch_size=column.batch_size,
        stages=column.stages,
    )
    return found.x_adv


def _clean(net: Net, x: Tensor, y: Tensor, column: "AttackSpec", generator: Generator) -> Tensor:
    return x


def _fgsm(net: Net, x: Tensor, y: Tensor, column: "AttackSpec", generator: Generator) -> Tensor:
    e = column.epsilon
    return pgd(lambda z: cross_entropy(net(z), y), x, epsilon=e, step_size=e, steps=1, start=at_image)


def _fgsm_random(net: Net, x: Tensor, y: Tensor, column: "AttackSpec", generator: Generator) -> Tensor:
    e = column.epsilon
    return pgd(lambda z: cross_entropy(net(z), y), x, epsilon=e, step_size=e, steps=1, generator=generator)


def _steps(loss: Callable[[Tensor, Tensor], Tensor], freeze: bool) -> Callable[..., Tensor]:
    """PGD on loss(logits, y); with `freeze` an image stays where it is first misclassified."""

    def run(net: Net, x: Tensor, y: Tensor, column: "AttackSpec", generator: Generator) -> Tensor:
        watch = UntilWrong(x, y, column.epsilon) if freeze else None
        heard = watch.listen(net) if watch else net
        return pgd(
            PerImage(lambda z, y: loss(heard(z), y), (y,)),
            x,
            epsilon=column.epsilon,
            step_size=column.step_size,
            steps=column.steps,
            generator=generator,
            criterion=watch,
        )

    return run


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
    """run(net, x, y, column, generator) -> x'; is x' held to epsilon; is x the whole set and not a batch."""

    run: Callable[[Net, Tensor, Tensor, "AttackSpec", Generator], Tensor]
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
