"""Eleven checks of an evaluation: what goes wrong when a network only looks robust, each with its number and limit.

Sources: Athalye et al. 2018, Carlini et al. 2019, Croce et al. 2020, Pintor et al. 2022. None proves anything; what
fires wants an explanation before the robust accuracy beside it is believed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from lib.attacks.pgd import PerImage, at_image, input_gradient, pgd
from lib.attacks.stopping import StoppingCriterion
from lib.evaluate.inputs import are_probabilities
from lib.losses import cross_entropy, margin

Net = Callable[[Tensor], Tensor]

SLACK_IMAGES = 3  # a difference of fewer images is noise on a small set
SQUARE_QUERIES = 500
HALF = 20  # the steps of PGD-20, which PGD-40 goes on from
ENOUGH = 500  # images on which a point or two are no accident
NOISE_DRAWS = 100


@dataclass(frozen=True)
class Finding:
    """What a check measured and the limit above which it fires; both in percent unless `meaning` says otherwise."""

    check: str
    value: float
    limit: float
    meaning: str

    @property
    def fired(self) -> bool:
        """Whether the value is above its limit, by more than float rounding."""
        return self.value > self.limit + 1e-6


class Path(NamedTuple):
    """Of one PGD-40, per image (N,): wrong on the way to step 20, right at step 20, right at step 40."""

    wrong_on_way: Tensor
    right_at_20: Tensor
    right_at_40: Tensor


class Evidence:
    """What the checks look at, each computed once, when first asked for, `batch_size` images at a time.

    Shapes: x (N, C, H, W) in [0, 1], y (N,). `net` is in eval mode. `unrelated` is a network trained apart from it.
    """

    def __init__(
        self, net: Net, x: Tensor, y: Tensor, epsilon: float, unrelated: Net | None, seed: int, batch_size: int = 256
    ) -> None:
        self.net, self.x, self.y, self.epsilon, self.unrelated = net, x, y, epsilon, unrelated
        self.seed, self.batch_size = seed, batch_size

    @property
    def slack(self) -> float:
        """What two accuracies may differ by, in percent: AutoAttack's 0.2, and never less than three images."""
        return max(0.2, 100 * SLACK_IMAGES / len(self.y))

    @cached_property
    def logits(self) -> Tensor:
        """(N, C) of the images as they are."""
        return self.outputs(self.x)

    @property
    def chance(self) -> float:
        """100 / C."""
        return 100 / self.logits.shape[1]

    @property
    def clean(self) -> float:
        """Accuracy in percent on the images as they are, as are the others."""
        return share(self.logits.argmax(1) == self.y)

    @cached_property
    def path(self) -> Path:
        """What PGD-40 does on its way."""
        generator = self.generator()
        parts = [self._path(x, y, generator) for x, y in self.batches()]
        return Path(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def _path(self, x: Tensor, y: Tensor, generator: Generator) -> Path:
        watch, steps, halfway = StoppingCriterion(x, y, self.epsilon), 0, x
        wrong_on_way = torch.zeros_like(y, dtype=torch.bool)

        def look(x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
            nonlocal steps, halfway, wrong_on_way
            if steps < HALF:
                wrong_on_way = wrong_on_way | (watch.logits.argmax(1) != y)
            elif steps == HALF:
                halfway = x_adv
            steps += 1
            return watch(x_adv, gradient, index)

        objective = objective_of(watch.listen(self.net), cross_entropy, y)
        size = self.epsilon / 4
        end = pgd(
            objective, x, epsilon=self.epsilon, step_size=size, steps=2 * HALF, generator=generator, criterion=look
        )
        return Path(wrong_on_way, *(self.outputs(z).argmax(1) == y for z in (halfway, end)))

    @cached_property
    def pgd_20(self) -> float:
        """Accuracy under PGD-20."""
        return share(self.path.right_at_20)

    @cached_property
    def pgd_40(self) -> float:
        """Twice the steps."""
        return share(self.path.right_at_40)

    @cached_property
    def fgsm(self) -> float:
        """One step of the whole radius, from the image."""
        objectives = [(objective_of(self.net, cross_entropy, y), x) for x, y in self.batches()]
        e = self.epsilon
        made = [pgd(objective, x, epsilon=e, step_size=e, steps=1, start=at_image) for objective, x in objectives]
        return self.accuracy(torch.cat(made))

    def attacked(
        self,
        epsilon: float | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        net: Net | None = None,
    ) -> Tensor:
        """x' of PGD-20 with a quarter of the radius a step, from the evidence's own seed."""
        radius, generator = epsilon or self.epsilon, self.generator()
        made = [
            pgd(
                objective_of(net or self.net, loss, y),
                x,
                epsilon=radius,
                step_size=radius / 4,
                steps=HALF,
                generator=generator,
            )
            for x, y in self.batches()
        ]
        return torch.cat(made)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The images and labels, batch by batch."""
        return zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True)

    def generator(self) -> Generator:
        """A fresh one, from the evidence's own seed."""
        return Generator(self.x.device).manual_seed(self.seed)

    def outputs(self, x: Tensor) -> Tensor:
        """The network's answers at x."""
        with torch.no_grad():
            return torch.cat([self.net(part) for part in x.split(self.batch_size)])

    def right(self, x: Tensor) -> Tensor:
        """Which images the network has right at x, (N,) bool."""
        return self.outputs(x).argmax(1) == self.y

    def accuracy(self, x: Tensor) -> float:
        """Percent of the images right at x."""
        return share(self.right(x))


def objective_of(net: Net, loss: Callable[[Tensor, Tensor], Tensor], y: Tensor) -> PerImage:
    """loss(net(x'), y) per image."""
    return PerImage(lambda z, y: loss(net(z), y), (y,))


def share(flags: Tensor) -> float:
    """The percentage of an (N,) bool that is true."""
    return 100 * int(flags.sum()) / len(flags)


def sanity_checks(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    unrelated: nn.Module | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> list[Finding]:
    """Every check on some images (a few hundred do); the transfer check where there is an `unrelated` network.

    Shapes: x (N, C, H, W) in [0, 1], y (N,); epsilon in [0, 1]. The network's mode is the caller's: eval.
    """
    evidence = Evidence(net, x, y, epsilon, unrelated, seed, batch_size)
    return [check(evidence) for name, check in CHECKS.items() if unrelated is not None or name != "transfer"]


def zero_gradients(e: Evidence) -> Finding:
    """The share of images whose input gradient is zero everywhere: nothing for an attack to follow."""
    gradients = [input_gradient(objective_of(e.net, cross_entropy, y), x) for x, y in e.batches()]
    none = torch.cat([gradient.flatten(1).abs().amax(1) == 0 for gradient in gradients])
    return Finding("zero gradients", share(none), max(1.0, e.slack), "% of images without any input gradient")


def margin_beats_ce(e: Evidence) -> Finding:
    """How much lower PGD-20 gets with the margin loss: cross-entropy that has saturated hides the way."""
    found = e.pgd_20 - e.accuracy(e.attacked(loss=margin))
    return Finding("margin beats cross-entropy", found, max(5.0, e.slack), "points that the margin loss gains PGD-20")


def unbounded_radius(e: Evidence) -> Finding:
    """The accuracy that is left when an image may become any other, above chance."""
    left = max(e.accuracy(e.attacked(epsilon=radius)) for radius in (0.5, 1.0))
    return Finding("unbounded radius", left, e.chance + e.slack, "% right at a radius of 0.5 or 1")


def noise_beats_pgd(e: Evidence) -> Finding:
    """How much lower the worst of a hundred random perturbations gets than PGD-20."""
    generator = e.generator()
    right = torch.ones_like(e.y, dtype=torch.bool)
    for _ in range(NOISE_DRAWS):
        u = 2 * torch.rand(e.x.shape, generator=generator, device=e.x.device, dtype=e.x.dtype) - 1
        right &= e.right((e.x + e.epsilon * u).clamp(0, 1))
    found = e.pgd_20 - share(right)
    return Finding("noise beats PGD", found, e.slack, "points that random noise gains on PGD-20")


def square_beats_pgd(e: Evidence) -> Finding:
    """How much lower Square, which sees no gradient, gets than PGD-20 (AutoAttack's own flag)."""
    from pyautoattack.square import SquareAttack

    attack = SquareAttack(e.net, n_queries=SQUARE_QUERIES, eps=e.epsilon, seed=e.seed, device=e.x.device)
    with torch.random.fork_rng(devices=[e.x.device] if e.x.device.type == "cuda" else []), torch.no_grad():
        found = e.pgd_20 - e.accuracy(torch.cat([attack.perturb(x, y) for x, y in e.batches()]))
    return Finding("Square beats PGD", found, e.slack, f"points that Square ({SQUARE_QUERIES} queries) gains on PGD-20")


def transfer_beats_pgd(e: Evidence) -> Finding:
    """How much lower images made on another network get than those made on this one."""
    found = e.pgd_20 - e.accuracy(e.attacked(net=e.unrelated))
    return Finding("transfer beats white-box", found, e.slack, "points that images made on another network gain")


def single_step_is_enough(e: Evidence) -> Finding:
    """Whether twenty steps gain nothing on one, not an image, although there is something left to gain.

    That says something where the one step broke nearly nothing, or where there are five hundred images: on fewer a
    sound network's few points between the two may be gone by chance.
    """
    least = 100 / len(e.y)
    tells = e.clean - e.fgsm <= e.slack or len(e.y) >= ENOUGH
    nothing = least - (e.fgsm - e.pgd_20) if tells and e.pgd_20 > e.chance else 0.0
    return Finding("a single step is enough", nothing, 0.0, "points that PGD-20 lacks of gaining an image on FGSM")


def not_converged(e: Evidence) -> Finding:
    """How much lower twice the steps get."""
    return Finding("not converged", e.pgd_20 - e.pgd_40, max(1.0, e.slack), "points that PGD-40 gains on PGD-20")


def random_forward(e: Evidence) -> Finding:
    """The largest difference of two forward passes of the same images, beside the largest logit where that is over 1.

    Equal calls of a sound network differ by float rounding only, on a GPU, and that grows with the logits.
    """
    size = max(1.0, float(e.logits.abs().max()))
    found = float((e.outputs(e.x) - e.logits).abs().max()) / size
    return Finding("two forwards disagree", found, 1e-4, "largest difference of a logit, relative to the largest")


def silent_success(e: Evidence) -> Finding:
    """The share of images that are wrong somewhere on PGD-20's path and right at its end."""
    silent = share(e.path.wrong_on_way & e.path.right_at_20)
    return Finding("silent success", silent, max(1.0, e.slack), "% of images broken on the way and right at the end")


def outputs_are_probabilities(e: Evidence) -> Finding:
    """Whether the outputs are non-negative and sum to 1: losses of logits are then taken of something else."""
    found = float(are_probabilities(e.logits))
    return Finding("outputs are probabilities", found, 0.5, "1 where they are")


CHECKS: dict[str, Callable[[Evidence], Finding]] = {
    "zero_gradients": zero_gradients,
    "margin": margin_beats_ce,
    "unbounded": unbounded_radius,
    "noise": noise_beats_pgd,
    "square": square_beats_pgd,
    "transfer": transfer_beats_pgd,
    "single_step": single_step_is_enough,
    "not_converged": not_converged,
    "random_forward": random_forward,
    "silent_success": silent_success,
    "probabilities": outputs_are_probabilities,
}
