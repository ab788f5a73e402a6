"""Networks and attacks compared image by image: is a difference inside the noise, and what survives every attack."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import binomtest

from lib.errors import UserError
from lib.evaluate.attacks import ATTACKS
from lib.evaluate.columns import Accuracy, wilson

LEVEL = 0.05  # a difference with a p above it is inside the noise


class Paired(NamedTuple):
    """Two networks on the same n images: the first's lead in points, its standard error, and the p of no difference."""

    n: int
    difference: float
    error: float
    p: float

    @property
    def told_apart(self) -> bool:
        """Whether the difference is more than the choice of the images explains."""
        return self.p < LEVEL


def mcnemar(first: str, second: str) -> Paired:
    """Two networks' flags on the same images: p of b against c as b + c fair coins, exact and two-sided.

    b and c are how many images the first and the second alone has right; the error of the difference is
    sqrt(b + c - (b - c)^2 / n) / n.

    Raises:
        UserError: the flags are not of the same images.
    """
    if len(first) != len(second) or not first:
        raise UserError(f"only flags of the same images can be paired, got {len(first)} and {len(second)}")
    b = sum(one > other for one, other in zip(first, second, strict=True))
    c = sum(one < other for one, other in zip(first, second, strict=True))
    n = len(first)
    error = 100 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return Paired(n, 100 * (b - c) / n, error, float(binomtest(b, b + c).pvalue) if b + c else 1.0)


def paired(first: Sequence[str], second: Sequence[str]) -> Paired:
    """Two rows on the same images: McNemar's test for one seed each, else a z-test of each image's mean over the seeds.

    Raises:
        UserError: the flags are not of the same images.
    """
    if len(first) == len(second) == 1:
        return mcnemar(first[0], second[0])
    if len({len(one) for one in (*first, *second)}) != 1:
        raise UserError("only flags of the same images can be paired")
    means = [_means(flags) for flags in (first, second)]
    leads = [one - other for one, other in zip(*means, strict=True)]
    n, mean = len(leads), sum(leads) / len(leads)
    error = math.sqrt(sum((lead - mean) ** 2 for lead in leads)) / n
    p = math.erfc(abs(mean) / error / math.sqrt(2)) if error else float(mean == 0)
    return Paired(n, 100 * mean, 100 * error, p)


def _means(flags: Sequence[str]) -> list[float]:
    return [sum(one[i] == "1" for one in flags) / len(flags) for i in range(len(flags[0]))]


class WorstCase(NamedTuple):
    """k of n images are right under every one of the attacks `of`."""

    k: int
    n: int
    of: tuple[str, ...]
    flags: str

    @property
    def percent(self) -> float:
        """100 k / n."""
        return 100 * self.k / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson 95 % interval of the percentage."""
        return wilson(self.k, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent:.1f} [{low:.1f}, {high:.1f}], {self.k} of {self.n} under {', '.join(self.of)}"


def worst_case(accuracies: Sequence[Accuracy]) -> WorstCase | None:
    """The accuracy per image over all columns with a radius, clean included: on the images that they all have.

    None without an attack among them.
    """
    held = [a for a in accuracies if ATTACKS[a.column.attack].bounded]
    if all(a.column.attack == "clean" for a in held):
        return None
    n = min(a.n for a in held)
    flags = "".join("01"[all(a.flags[i] == "1" for a in held)] for i in range(n))
    return WorstCase(flags.count("1"), n, tuple(a.column.name for a in held), flags)


def contradictions(accuracies: Sequence[Accuracy]) -> list[str]:
    """What cannot be if every attack does its work, one sentence each.

    An attack above the clean accuracy of its images; fewer steps of one PGD that break more than many.
    """
    clean = next((a for a in accuracies if a.column.attack == "clean"), None)
    attacks = [a for a in accuracies if a.column.attack != "clean"]
    said = [
        f"{a.column.name} leaves {a.k} of {a.n} images right, without it {clean.flags[: a.n].count('1')} are"
        for a in attacks
        if clean is not None and a.k > clean.flags[: a.n].count("1")
    ]
    for short, long in ((a, b) for a in attacks for b in attacks):
        same = short.column.attack == long.column.attack == "pgd_frozen" and short.column.steps < long.column.steps
        if same and short.n == long.n and short.k < long.k and short.column.epsilon == long.column.epsilon:
            said.append(f"{long.column.name} leaves more images right than {short.column.name}")
    return said
