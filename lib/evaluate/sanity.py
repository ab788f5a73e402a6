"""Twelve checks of an evaluation: what goes wrong when a network only looks robust, each with its number and limit.

Sources: Athalye et al. 2018, Carlini et al. 2019, Croce et al. 2020, Pintor et al. 2022. None proves anything; what
fires wants an explanation before the robust accuracy beside it is believed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any

import pandas as pd
import torch
from torch import Generator, Tensor

from lib.attacks.pgd import Net, at_image, input_gradient, pgd
from lib.attacks.stopping import Trajectory
from lib.attacks.watched import Watched
from lib.evaluate.attacks import Loss, objective_of
from lib.losses import cross_entropy, margin

SLACK_IMAGES = 3  # a difference of fewer images is noise on a small set
ENOUGH = 500  # images on which a point or two are no accident
STEPS = 20  # of PGD; the check of convergence takes twice as many
NOISE_DRAWS = 100
SQUARE_QUERIES = 500
FIRED, SOUND = "#f4a582", "#d9ead3"


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


def summary(findings: Mapping[str, Sequence[Finding]], contradictions: Mapping[str, Sequence[str]]) -> list[str]:
    """What fired, a sentence per check and per contradiction, with the networks; one sentence where nothing did."""
    fired: dict[str, list[str]] = {}
    for network, f in ((network, finding) for network, each in findings.items() for finding in each if finding.fired):
        fired.setdefault(f"{f.check} ({f.meaning}; limit {f.limit:.3g})", []).append(f"{network} {f.value:.3g}")
    sentences = [f"{check}: {', '.join(networks)}." for check, networks in fired.items()]
    sentences += [f"{network}: {sentence}." for network, each in contradictions.items() for sentence in each]
    if not findings:
        return [*sentences, "No sanity checks were made."]
    networks = "the network" if len(findings) == 1 else f"any of {len(findings)} networks"
    return sentences or [f"No sanity check fired on {networks}."]


def strip(findings: Mapping[str, Sequence[Finding]], contradictions: Mapping[str, Sequence[str]]) -> str:
    """HTML: a line per network, a cell per check, its title the limit and the meaning; the sentences stand below."""
    cells = {escape(network): {escape(f.check): _cell(f) for f in each} for network, each in findings.items()}
    frame = pd.DataFrame.from_dict(cells, orient="index").rename_axis(columns="sanity checks").fillna("–")
    style = "padding: 0 2px; text-align: left; font-weight: normal; white-space: normal; max-width: 7em"
    table = frame.style.set_uuid("sanity").set_table_styles([{"selector": "th, td", "props": style}]).to_html()
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in summary(findings, contradictions))
    below = f'<ul style="margin-top: 0.3em; max-width: 70em">{sentences}</ul>'
    return f'<div style="font-size: 80%">{table if findings else ""}{below}</div>'


def _cell(finding: Finding) -> str:
    colour = f"{FIRED}; font-weight: bold" if finding.fired else SOUND
    title = escape(f"{finding.check}: {finding.value:.3g}, limit {finding.limit:.3g}; {finding.meaning}")
    style = f"display: block; padding: 0 3px; text-align: right; background: {colour}"
    return f'<span style="{style}" title="{title}">{finding.value:.3g}</span>'


@dataclass(eq=False)
class Evidence:
    """What the checks look at, each computed once, on first use, `batch_size` images at a time.

    Shapes: x (N, C, H, W) in [0, 1], y (N,). `net` is in eval mode. `unrelated` is a network trained apart from it.
    Accuracies are in percent; epsilon is in [0, 1], and a step of PGD is a quarter of the radius.
    """

    net: Net
    x: Tensor
    y: Tensor
    epsilon: float
    unrelated: Net | None = None
    seed: int = 0
    batch_size: int = 256

    slack = cached_property(lambda e: max(0.2, 100 * SLACK_IMAGES / len(e.y)))  # AutoAttack's 0.2, or three images
    logits = cached_property(lambda e: e.outputs(e.x))  # (N, C) of the images as they are
    chance = cached_property(lambda e: 100 / e.logits.shape[1])
    right_on_the_way = cached_property(lambda e: e.path(e.net, steps=2 * STEPS))  # (41, N) bool
    pgd_20 = cached_property(lambda e: percent(e.right_on_the_way[STEPS]))
    fgsm = cached_property(lambda e: e.attacked(e.net, step_size=e.epsilon, steps=1, start=at_image))

    def path(self, net: Net, loss: Loss = cross_entropy, **chosen: Any) -> Tensor:
        """Which images are right at every iterate of PGD-20 on the loss of `net`, the start first: (steps + 1, N) bool.

        An image without a finite gradient somewhere on the way is nowhere right. `chosen` are other settings of PGD.
        The start is random, drawn anew from the seed.
        """
        parts, e, generator = [], self.epsilon, Generator(self.x.device).manual_seed(self.seed)
        usual: dict[str, Any] = {"epsilon": e, "step_size": e / 4, "steps": STEPS, "generator": generator}
        for x, y in self.batches():
            trajectory, on = Trajectory(x, y, self.epsilon), Watched(net, x)
            x_adv = pgd(objective_of(trajectory.listen(on), loss, y), x, **usual | chosen, criterion=trajectory)
            parts.append(torch.stack([*trajectory.right, self.outputs(x_adv).argmax(1) == y]) & ~on.blind)
        return torch.cat(parts, 1)

    def attacked(self, net: Net, loss: Loss = cross_entropy, **chosen: Any) -> float:
        """Accuracy at the end of such a `path`."""
        return percent(self.path(net, loss, **chosen)[-1])

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The images and labels, batch by batch."""
        return zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True)

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        """The network's logits (N, C)."""
        return torch.cat([self.net(part) for part in x.split(self.batch_size)])


def percent(flags: Tensor) -> float:
    """The percentage of an (N,) bool that is true."""
    return 100 * int(flags.sum()) / len(flags)


def sanity_checks(
    net: Net, x: Tensor, y: Tensor, *, epsilon: float, unrelated: Net | None = None, **chosen: int
) -> list[Finding]:
    """Every check on some images (a few hundred do); the transfer check where there is an `unrelated` network.

    `chosen` are `Evidence`'s seed and batch size, and so are the shapes. The networks' mode is the caller's: eval.
    """
    evidence = Evidence(net, x, y, epsilon, unrelated, **chosen)
    return [check(evidence) for check in CHECKS if unrelated is not None or check is not transfer_beats_pgd]


def at_chance(e: Evidence) -> Finding:
    """How much the clean accuracy lacks of being three standard deviations above guessing: nothing was learnt."""
    told_apart = e.chance + 3 * (e.chance * (100 - e.chance) / len(e.y)) ** 0.5
    lacking = told_apart - percent(e.logits.argmax(1) == e.y)
    return Finding("at chance", lacking, 0.0, "points that clean accuracy lacks of being told from guessing")


def zero_gradients(e: Evidence) -> Finding:
    """The share of images whose input gradient is zero everywhere, or not finite: nothing for an attack to follow."""
    none = []
    for x, y in e.batches():
        on = Watched(e.net, x)
        gradient = input_gradient(objective_of(on, cross_entropy, y), x)
        none.append(on.blind | (gradient.flatten(1).abs().amax(1) == 0))
    share = percent(torch.cat(none))
    return Finding("zero gradients", share, max(1.0, e.slack), "% of images without any input gradient")


def margin_beats_ce(e: Evidence) -> Finding:
    """How much lower PGD-20 gets with the margin loss: cross-entropy that has saturated hides the way."""
    gain = e.pgd_20 - e.attacked(e.net, margin)
    return Finding("margin beats cross-entropy", gain, max(5.0, e.slack), "points that the margin loss gains PGD-20")


def unbounded_radius(e: Evidence) -> Finding:
    """The accuracy that is left when an image may become any other, above chance."""
    left = max(e.attacked(e.net, epsilon=radius, step_size=radius / 4) for radius in (0.5, 1.0))
    return Finding("unbounded radius", left, e.chance + e.slack, "% right at a radius of 0.5 or 1")


def noise_beats_pgd(e: Evidence) -> Finding:
    """How much lower the worst of a hundred random perturbations gets than PGD-20."""
    generator, right = Generator(e.x.device).manual_seed(e.seed), torch.ones_like(e.y, dtype=torch.bool)
    for _ in range(NOISE_DRAWS):
        u = 2 * torch.rand(e.x.shape, generator=generator, device=e.x.device, dtype=e.x.dtype) - 1
        right &= e.outputs((e.x + e.epsilon * u).clamp(0, 1)).argmax(1) == e.y
    return Finding("noise beats PGD", e.pgd_20 - percent(right), e.slack, "points that random noise gains on PGD-20")


def square_beats_pgd(e: Evidence) -> Finding:
    """How much lower Square, which sees no gradient, gets than PGD-20 (AutoAttack's own flag)."""
    from pyautoattack.square import SquareAttack

    attack = SquareAttack(e.net, n_queries=SQUARE_QUERIES, eps=e.epsilon, seed=e.seed, device=e.x.device)
    with torch.random.fork_rng(devices=[e.x.device] if e.x.device.type == "cuda" else []), torch.no_grad():
        x_adv = torch.cat([attack.perturb(x, y) for x, y in e.batches()])
    gain = e.pgd_20 - percent(e.outputs(x_adv).argmax(1) == e.y)
    return Finding("Square beats PGD", gain, e.slack, f"points that Square ({SQUARE_QUERIES} queries) gains on PGD-20")


def transfer_beats_pgd(e: Evidence) -> Finding:
    """How much lower images made on another network get than those made on this one."""
    gain = e.pgd_20 - e.attacked(e.net if e.unrelated is None else e.unrelated)
    return Finding("transfer beats white-box", gain, e.slack, "points that images made on another network gain")


def single_step_is_enough(e: Evidence) -> Finding:
    """Whether twenty steps gain nothing on one, not an image, although there is something left to gain.

    That means something where the one step broke nearly nothing, or where there are five hundred images: on fewer a
    sound network's few points between the two may be gone by chance.
    """
    one_image = 100 / len(e.y)
    clean = percent(e.logits.argmax(1) == e.y)
    conclusive = clean - e.fgsm <= e.slack or len(e.y) >= ENOUGH
    lacking = one_image - (e.fgsm - e.pgd_20) if conclusive and e.pgd_20 > e.chance else 0.0
    return Finding("a single step is enough", lacking, 0.0, "points that PGD-20 lacks of gaining an image on FGSM")


def not_converged(e: Evidence) -> Finding:
    """How much lower twice the steps get."""
    gain = e.pgd_20 - percent(e.right_on_the_way[2 * STEPS])
    return Finding("not converged", gain, max(1.0, e.slack), "points that PGD-40 gains on PGD-20")


def random_forward(e: Evidence) -> Finding:
    """The largest difference of two forwards of the same images, beside the largest logit: rounding grows so."""
    size = max(1.0, float(e.logits.abs().max()))
    differs = float((e.outputs(e.x) - e.logits).abs().max()) / size
    return Finding("two forwards disagree", differs, 1e-4, "largest difference of a logit, relative to the largest")


def silent_success(e: Evidence) -> Finding:
    """The share of images that are wrong somewhere on PGD-20's path and right at its end."""
    silent = percent(~e.right_on_the_way[:STEPS].all(0) & e.right_on_the_way[STEPS])
    return Finding("silent success", silent, max(1.0, e.slack), "% of images broken on the way and right at the end")


def outputs_are_probabilities(e: Evidence) -> Finding:
    """Whether the outputs are non-negative and sum to 1, to 1e-4: losses of logits are then taken of something else."""
    are = bool((e.logits >= 0).all()) and bool(((e.logits.sum(1) - 1).abs() < 1e-4).all())
    return Finding("outputs are probabilities", float(are), 0.5, "1 where they are: take the softmax off")


CHECKS = (
    at_chance,
    zero_gradients,
    margin_beats_ce,
    unbounded_radius,
    noise_beats_pgd,
    square_beats_pgd,
    transfer_beats_pgd,
    single_step_is_enough,
    not_converged,
    random_forward,
    silent_success,
    outputs_are_probabilities,
)
