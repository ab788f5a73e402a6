"""Networks and attacks compared image by image: is a difference inside the noise, and what survives every attack."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import variance
from typing import NamedTuple

from scipy.stats import binomtest
from scipy.stats import t as student_t

from lib.errors import UserError
from lib.evaluate.attack_spec import Accuracy, Share
from lib.evaluate.attacks import ATTACKS, STEPPED

FROZEN = [name for name, (_, freeze) in STEPPED.items() if freeze]
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
    """Two rows on the same images: McNemar's test for one seed each, else a t-test that counts the trainings' spread.

    With several seeds the error is that of the images, of each image's mean over the seeds, and of the trainings:
    error^2 = var_i(lead_i) / n + sd_1^2 / S_1 + sd_2^2 / S_2, with Welch's degrees of freedom. A single seed's spread
    is not known and left out.

    Raises:
        UserError: the flags are not of the same images.
    """
    if len(first) == len(second) == 1:
        return mcnemar(first[0], second[0])
    if len({len(one) for one in (*first, *second)}) != 1:
        raise UserError("only flags of the same images can be paired")
    leads = [one - other for one, other in zip(_means(first), _means(second), strict=True)]
    n, mean = len(leads), sum(leads) / len(leads)
    parts = [(sum((lead - mean) ** 2 for lead in leads) / n**2, n - 1)]
    for flags in (one for one in (first, second) if len(one) > 1):
        parts.append((variance([one.count("1") / n for one in flags]) / len(flags), len(flags) - 1))
    total = sum(part for part, _ in parts)
    if not total:
        return Paired(n, 100 * mean, 0.0, float(mean == 0))
    freedom = total**2 / sum(part**2 / max(degrees, 1) for part, degrees in parts)
    return Paired(n, 100 * mean, 100 * math.sqrt(total), 2 * float(student_t.sf(abs(mean) / math.sqrt(total), freedom)))


def _means(flags: Sequence[str]) -> list[float]:
    return [sum(one[i] == "1" for one in flags) / len(flags) for i in range(len(flags[0]))]


@dataclass(frozen=True)
class WorstCase(Share):
    """k of n images are right under every one of the attacks `of`."""

    k: int
    n: int
    of: tuple[str, ...]
    flags: str

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

    An attack on the network itself above the clean accuracy of its images; an image of a frozen attack that is right
    again after more steps of the very same.
    """
    clean = next((a for a in accuracies if a.column.attack == "clean"), None)
    said = []
    for a in (a for a in accuracies if clean is not None and a.column.attack != "clean" and not a.column.surrogate):
        n = min(a.n, clean.n if clean else 0)
        right, without = a.flags[:n].count("1"), clean.flags[:n].count("1") if clean else 0
        if right > without:
            said.append(f"{a.column.name} leaves {right} of {n} images right, without it {without} are")
    for short, long in ((a, b) for a in accuracies for b in accuracies if a.column.attack in FROZEN):
        same = replace(short.column.what, steps=1) == replace(long.column.what, steps=1)
        if same and short.column.steps < long.column.steps and short.n == long.n:
            back = sum(one < other for one, other in zip(short.flags, long.flags, strict=True))
            if back:
                said.append(f"{long.column.name} has {back} images right that {short.column.name} broke")
    return said
