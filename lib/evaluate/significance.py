"""Networks and attacks compared image by image: is a difference inside the noise, and what survives every attack."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student_t

from lib.errors import UserError
from lib.evaluate.attack_spec import Accuracy, Share
from lib.evaluate.attacks import ATTACKS, STEPPED

LEVEL = 0.05  # a difference with a p above it is inside the noise


class Paired(NamedTuple):
    """Two networks on the same n images: the first's lead in points, its standard error, and the p of no difference."""

    n: int
    difference: float
    error: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether the difference is more than the choice of the images explains."""
        return self.p < LEVEL


def mcnemar(first: str, second: str) -> Paired:
    """Two networks' flags on the same images: p of b against c as b + c fair coins, exact and two-sided.

    b and c are how many images the first and the second alone has right; the error of the difference is
    sqrt(b + c - (b - c)^2 / n) / n.

    Raises:
        UserError: the flags are not of the same images.
    """
    one, other = _as_arrays([first], [second])
    b, c, n = int((one > other).sum()), int((one < other).sum()), len(first)
    error = 100 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return Paired(n, 100 * (b - c) / n, error, float(binomtest(b, b + c).pvalue) if b + c else 1.0)


def paired(first: Sequence[str], second: Sequence[str]) -> Paired:
    """Two rows on the same images: McNemar's test for one seed each, else a t-test that counts the trainings' spread.

    With several seeds the error is that of the images, of each image's mean over the seeds, and of the trainings:
    error^2 = var_i(difference_i) / n + sd_1^2 / S_1 + sd_2^2 / S_2, with Welch's degrees of freedom. A single seed's
    spread is not known and left out.

    Raises:
        UserError: the flags are not of the same images.
    """
    if len(first) == len(second) == 1:
        return mcnemar(first[0], second[0])
    rows = _as_arrays(first, second)
    differences = rows[0].mean(0) - rows[1].mean(0)
    n, mean = len(differences), float(differences.mean())
    parts = [(float(differences.var()) / n, n - 1)]
    parts += [(float(flags.mean(1).var(ddof=1)) / len(flags), len(flags) - 1) for flags in rows if len(flags) > 1]
    total = sum(part for part, _ in parts)
    if not total:
        return Paired(n, 100 * mean, 0.0, float(mean == 0))
    freedom = total**2 / sum(part**2 / max(degrees, 1) for part, degrees in parts)
    return Paired(n, 100 * mean, 100 * math.sqrt(total), 2 * float(student_t.sf(abs(mean) / math.sqrt(total), freedom)))


def _as_arrays(*rows: Sequence[str]) -> list[np.ndarray]:
    """Each row's flags as (seeds, n) zeros and ones."""
    counts = {len(flags) for row in rows for flags in row}
    if len(counts) != 1 or 0 in counts:
        raise UserError(f"only flags of the same images can be paired, got {', '.join(map(str, sorted(counts)))} flags")
    return [np.array([[flag == "1" for flag in flags] for flags in row], dtype=int) for row in rows]


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
    bounded = [a for a in accuracies if ATTACKS[a.column.attack].bounded]
    if all(a.column.attack == "clean" for a in bounded):
        return None
    n = min(a.n for a in bounded)
    flags = "".join(min(each) for each in zip(*(a.flags[:n] for a in bounded), strict=True))
    return WorstCase(flags.count("1"), n, tuple(a.column.name for a in bounded), flags)


def contradictions(accuracies: Sequence[Accuracy]) -> list[str]:
    """What cannot be if every attack does its work, one sentence each.

    An attack on the network itself above the clean accuracy of its images; an image of a frozen attack that is right
    again after more steps of the very same.
    """
    sentences = []
    for clean in [a for a in accuracies if a.column.attack == "clean"][:1]:
        for a in (a for a in accuracies if a is not clean and not a.column.surrogate):
            n = min(a.n, clean.n)
            right, without = a.flags[:n].count("1"), clean.flags[:n].count("1")
            if right > without:
                sentences.append(f"{a.column.name} leaves {right} of {n} images right, without it {without} are")
    frozen = [a for a in accuracies if STEPPED.get(a.column.attack, (None, False))[1]]
    for short, long in ((a, b) for a in frozen for b in frozen if a.column.steps < b.column.steps and a.n == b.n):
        back = sum(one < other for one, other in zip(short.flags, long.flags, strict=True))
        if back and replace(short.column.what, steps=1) == replace(long.column.what, steps=1):
            sentences.append(f"{long.column.name} has {back} images right that {short.column.name} broke")
    return sentences
