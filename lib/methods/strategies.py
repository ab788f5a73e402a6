"""Strategies by name: what picks the attack's settings for every image of a batch, wrapped around any method.

Options are those of the paper and its code at a radius of 8/255, radii and step sizes in 1/255; `scaled` brings them
to another. `*_as_released` are the authors' scripts, one set of options and coefficients each.
"""

from dataclasses import replace

from torch import nn

from lib.errors import choose
from lib.methods.las_at import Frozen, Learned, LearnedAsReleased, LearnedAWPAsReleased
from lib.methods.searches import CAT, OHL, AdvHP
from lib.methods.strategy import UNITS, Strategy, StrategySpec

RADIUS = 8 / 255  # what the options below are written for
KINDS: dict[str, type[Strategy]] = {
    "random": Strategy,
    "frozen": Frozen,
    "learned": Learned,
    "learned_as_released": LearnedAsReleased,
    "learned_awp_as_released": LearnedAWPAsReleased,
    "adv_hp": AdvHP,
    "ohl": OHL,
    "cat": CAT,
}


def _options(**ranges: tuple[int, int]) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """All whole numbers from first to last of each setting; radii and steps in 1/255."""
    return tuple((n, tuple(v / UNITS.get(n, 1) for v in range(a, b + 1))) for n, (a, b) in ranges.items())


_PAPER = _options(epsilon=(3, 15), step_size=(1, 6), steps=(3, 15))
_PGD_CODE = _options(epsilon=(3, 15), steps=(3, 14), step_size=(1, 5))
_TRADES_CODE = _options(epsilon=(5, 9), steps=(7, 14), step_size=(2, 4), trade_off=(5, 9))
_AWP_CODE = _options(epsilon=(7, 15), steps=(8, 16), step_size=(2, 5))
_CODE = StrategySpec("learned_as_released", start="training", lr=1e-4, momentum=0.0, clip=1.0, hardest=10)
_EVERY_STEP = replace(_CODE, every=1, lr_falls=True)

STRATEGIES: dict[str, StrategySpec] = {
    "las_at": StrategySpec("learned", _PAPER),
    "las_trades": StrategySpec("learned", (*_PAPER, *_options(trade_off=(5, 9)))),
    "las_pgd_at_as_released": replace(_CODE, options=_PGD_CODE, every=20, adv=4, clean=2, own_l1=False),
    "las_trades_as_released": replace(
        _EVERY_STEP, options=_TRADES_CODE, momentum=0.9, weight_decay=5e-4, adv=8, clean=4, hardest=20
    ),
    "las_awp_as_released": replace(
        _EVERY_STEP, kind="learned_awp_as_released", options=_AWP_CODE, adv=1, clean=1, own_l1=False
    ),
    "random": StrategySpec("random", _PAPER),
    "frozen": StrategySpec("frozen", _PAPER),
    "ohl": StrategySpec("ohl", _PAPER, lr=0.1),
    "adv_hp": StrategySpec("adv_hp", _PAPER, lr=1.0, every=1),
    "cat": StrategySpec("cat", candidates=10),
}


def needs_network(spec: StrategySpec) -> bool:
    """Whether the strategy has a network of its own."""
    return issubclass(choose("kind of strategy", spec.kind, KINDS), Frozen)


def build(spec: StrategySpec, net: nn.Module | None) -> Strategy:
    """The strategy at its start; `net` maps images to as many logits as there are options in all."""
    return choose("kind of strategy", spec.kind, KINDS)(spec, net)


def scaled(spec: StrategySpec, epsilon: float) -> StrategySpec:
    """The same strategy with radii and step sizes in proportion to a training radius other than 8/255."""
    share = epsilon / RADIUS
    options = tuple((name, tuple(v * (share if name in UNITS else 1) for v in values)) for name, values in spec.options)
    return replace(spec, options=options)
