"""Eleven checks of an evaluation: what goes wrong when a network only looks robust, each with its number and limit.

Sources: Athalye et al. 2018, Carlini et al. 2019, Croce et al. 2020, Pintor et al. 2022. None proves anything; what
fires wants an explanation before the robust accuracy beside it is believed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor, nn

from lib.attacks import PerImage, Rule, at_image, input_gradient, pgd
from lib.evaluate.inputs import are_probabilities
from lib.losses import cross_entropy, margin
from lib.watch import Watch

Net = Callable[[Tensor], Tensor]

SLACK_IMAGES = 3  # a difference of fewer images is noise on a small set
SQUARE_QUERIES = 500
HALF = 20  # the steps of PGD-20
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


class Evidence:
    """What the checks look at, each computed once, when first asked for.

    Shapes: x (N, C, H, W) in [0, 1], y (N,). `net` is in eval mode. `unrelated` is a network trained apart from it.
    """

    def __init__(self, net: Net, x: Tensor, y: Tensor, epsilon: float, unrelated: Net | None, seed: int) -> None:
        self.net, self.x, self.y, self.epsilon, self.unrelated, self.seed = net, x, y, epsilon, unrelated, seed

    @property
    def slack(self) -> float:
        """What two accuracies may differ by, in percent: AutoAttack's 0.2, and never less than three images."""
        return max(0.2, 100 * SLACK_IMAGES / len(self.y))

    @cached_property
    def logits(self) -> Tensor:
        """(N, C) of the images as they are."""
        with torch.no_grad():
            return self.net(self.x)

    @property
    def chance(self) -> float:
        """100 / C."""
        return 100 / self.logits.shape[1]

    @cached_property
    def path(self) -> tuple[Tensor, float, float]:
        """One PGD-40: who was wrong on the way to step 20 (N,), and the accuracies in percent after 20 and 40 steps."""
        wrong_on_path = torch.zeros_like(self.y, dtype=torch.bool)
        watch = Watch(self.x, self.y, self.epsilon)
        steps, halfway = 0, self.x

        def look(x_adv: Tensor, gradient: Tensor, index: Tensor) -> Tensor:
            nonlocal steps, halfway, wrong_on_path
            if steps < HALF:
                wrong_on_path = wrong_on_path | (watch.logits.argmax(1) != self.y)
            elif steps == HALF:
                halfway = x_adv
            steps += 1
            return watch(x_adv, gradient, index)

        at_end = self.attacked(2 * HALF, net=watch.listen(self.net), rule=look)
        return wrong_on_path & self.right(halfway), self.accuracy(halfway), self.accuracy(at_end)

    @cached_property
    def pgd_20(self) -> float:
        """Accuracy in percent under PGD-20, as are the others."""
        return self.path[1]

    @cached_property
    def pgd_40(self) -> float:
        """Twice the steps."""
        return self.path[2]

    @cached_property
    def fgsm(self) -> float:
        """One step of the whole radius, from the image."""
        return self.accuracy(
            pgd(
                self.objective(cross_entropy),
                self.x,
                epsilon=self.epsilon,
                step_size=self.epsilon,
                steps=1,
                start=at_image,
            )
        )

    def objective(self, loss: Callable[[Tensor, Tensor], Tensor], net: Net | None = None) -> PerImage:
        """loss(net(x'), y) per image."""
        attacked = net or self.net
        return PerImage(lambda z, y: loss(attacked(z), y), (self.y,))

    def attacked(
        self,
        steps: int,
        epsilon: float | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        net: Net | None = None,
        rule: Rule | None = None,
    ) -> Tensor:
        """x' of PGD with a quarter of the radius a step, from the evidence's own seed."""
        radius = self.epsilon if epsilon is None else epsilon
        generator = Generator(self.x.device).manual_seed(self.seed)
        step = radius / 4
        objective = self.objective(loss, net)
        return pgd(objective, self.x, epsilon=radius, step_size=step, steps=steps, generator=generator, rule=rule)

    def right(self, x: Tensor) -> Tensor:
        """Which images the network has right at x, (N,) bool."""
        with torch.no_grad():
            return self.net(x).argmax(1) == self.y

    def accuracy(self, x: Tensor) -> float:
        """Percent of the images right at x."""
        return 100 * int(self.right(x).sum()) / len(self.y)


def sanity(
    net: nn.Module, x: Tensor, y: Tensor, *, epsilon: float, unrelated: nn.Module | None = None, seed: int = 0
) -> list[Finding]:
    """Every check on some images (a few hundred do); the transfer check where there is an `unrelated` network.

    Shapes: x (N, C, H, W) in [0, 1], y (N,); epsilon in [0, 1]. The network's mode is the caller's: eval.
    """
    evidence = Evidence(net, x, y, epsilon, unrelated, seed)
    return [check(evidence) for name, check in CHECKS.items() if unrelated is not None or name != "transfer"]


def zero_gradients(e: Evidence) -> Finding:
    """The share of images whose input gradient is zero everywhere: nothing for an attack to follow."""
    gradient = input_gradient(e.objective(cross_entropy), e.x)
    share = 100 * int((gradient.flatten(1).abs().amax(1) == 0).sum()) / len(e.y)
    limit = max(1.0, 100 * SLACK_IMAGES / len(e.y))
    return Finding("zero gradients", share, limit, "% of images without any input gradient")


def margin_beats_ce(e: Evidence) -> Finding:
    """How much lower PGD-20 gets with the margin loss: cross-entropy that has saturated hides the way."""
    found = e.pgd_20 - e.accuracy(e.attacked(20, loss=margin))
    return Finding("margin beats cross-entropy", found, max(5.0, e.slack), "points that the margin loss gains PGD-20")


def unbounded_radius(e: Evidence) -> Finding:
    """The accuracy that is left when an image may become any other, above chance."""
    left = max(e.accuracy(e.attacked(20, epsilon=radius)) for radius in (0.5, 1.0))
    return Finding("unbounded radius", left, e.chance + e.slack, "% right at a radius of 0.5 or 1")


def noise_beats_pgd(e: Evidence) -> Finding:
    """How much lower the worst of a hundred random perturbations gets than PGD-20."""
    generator = Generator(e.x.device).manual_seed(e.seed)
    right = torch.ones_like(e.y, dtype=torch.bool)
    for _ in range(NOISE_DRAWS):
        u = 2 * torch.rand(e.x.shape, generator=generator, device=e.x.device, dtype=e.x.dtype) - 1
        with torch.no_grad():
            right &= e.net((e.x + e.epsilon * u).clamp(0, 1)).argmax(1) == e.y
    found = e.pgd_20 - 100 * float(right.float().mean())
    return Finding("noise beats PGD", found, e.slack, "points that random noise gains on PGD-20")


def square_beats_pgd(e: Evidence) -> Finding:
    """How much lower Square, which sees no gradient, gets than PGD-20 (AutoAttack's own flag)."""
    from pyautoattack.square import SquareAttack

    attack = SquareAttack(e.net, n_queries=SQUARE_QUERIES, eps=e.epsilon, seed=e.seed, device=e.x.device)
    with torch.random.fork_rng(devices=[e.x.device] if e.x.device.type == "cuda" else []), torch.no_grad():
        found = e.pgd_20 - e.accuracy(attack.perturb(e.x, e.y))
    return Finding("Square beats PGD", found, e.slack, f"points that Square ({SQUARE_QUERIES} queries) gains on PGD-20")


def transfer_beats_pgd(e: Evidence) -> Finding:
    """How much lower images made on another network get than those made on this one."""
    found = e.pgd_20 - e.accuracy(e.attacked(20, net=e.unrelated))
    return Finding("transfer beats white-box", found, e.slack, "points that images made on another network gain")


def single_step_is_enough(e: Evidence) -> Finding:
    """Whether twenty steps gain nothing on one, not an image, although there is something left to gain.

    That says something where the one step broke nearly nothing, or where there are five hundred images: on fewer a
    sound network's few points between the two may be gone by chance.
    """
    least = 100 / len(e.y)
    tells = e.accuracy(e.x) - e.fgsm <= e.slack or len(e.y) >= ENOUGH
    nothing = least - (e.fgsm - e.pgd_20) if tells and e.pgd_20 > e.chance else 0.0
    return Finding("a single step is enough", nothing, 0.0, "points that PGD-20 lacks of gaining an image on FGSM")


def not_converged(e: Evidence) -> Finding:
    """How much lower twice the steps get."""
    return Finding("not converged", e.pgd_20 - e.pgd_40, max(1.0, e.slack), "points that PGD-40 gains on PGD-20")


def random_forward(e: Evidence) -> Finding:
    """The largest difference of two forward passes of the same images."""
    with torch.no_grad():
        again = e.net(e.x)
    found = float((again - e.logits).abs().max())
    return Finding("two forwards disagree", found, 1e-4, "largest difference of a logit")


def silent_success(e: Evidence) -> Finding:
    """The share of images that are wrong somewhere on PGD-20's path and right at its end."""
    share = 100 * float(e.path[0].float().mean())
    return Finding("silent success", share, max(1.0, e.slack), "% of images broken on the way and right at the end")


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
