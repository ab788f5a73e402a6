"""Accuracies with every image's flag, and compared by them: is a difference noise, what survives every attack."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student_t

from lib.errors import UserError
from lib.evaluate.attacks import ATTACKS, AttackSpec, changed

LEVEL = 0.05  # a difference with a p above it is inside the noise


def wilson(k: int, n: int) -> tuple[float, float]:
    """The Wilson 95 % interval of k successes in n trials, in percent."""
    low, high = binomtest(k, n).proportion_ci(0.95, method="wilson")
    return 100 * low, 100 * high


class Share:
    """k of n, in percent and with its interval."""

    k: int
    n: int

    @property
    def percent(self) -> float:
        """100 k / n."""
        return 100 * self.k / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson 95 % interval of the percentage."""
        return wilson(self.k, self.n)


@dataclass(frozen=True)
class Accuracy(Share):
    """k of n images classified correctly, which images (`flags`, one character each), under `column`."""

    column: AttackSpec
    k: int
    n: int
    flags: str = field(repr=False)
    stages: dict[str, str] = field(default_factory=dict, repr=False)  # AutoAttack's flags after each of its stages
    blind: tuple[int, ...] = ()  # images without a finite gradient, which were not attacked and are not right

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the run store; flags are packed, four of them a hexadecimal digit."""
        value = asdict(self) | {"flags": _pack(self.flags), "stages": {s: _pack(f) for s, f in self.stages.items()}}
        return value if self.blind else {name: each for name, each in value.items() if name != "blind"}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Accuracy":
        """What `to_json` was called on."""
        stages = {stage: _unpack(flags) for stage, flags in value["stages"].items()}
        flags, blind = _unpack(value["flags"]), tuple(value.get("blind", ()))
        return cls(changed(value["column"], {}), value["k"], value["n"], flags, stages, blind)


def _pack(flags: str) -> str:
    return f"{int('1' + flags, 2):x}"  # the first one keeps the zeros after it


def _unpack(packed: str) -> str:
    return f"{int(packed, 16):b}"[1:]


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


def paired(first: Sequence[str], second: Sequence[str]) -> Paired:
    """Two rows on the same images: McNemar's exact test for one seed each, else a t-test that counts the trainings.

    error^2 = var_i(difference_i) / n + sd_1^2 / S_1 + sd_2^2 / S_2: that of the images, of each image's mean over the
    seeds, and that of the trainings, with Welch's degrees of freedom; a single seed's spread is not known and left out.
    McNemar's p is that of b against c, how many images the first and the second alone has right, as b + c fair coins.

    Raises:
        UserError: the flags are not of the same images.
    """
    counts = sorted({len(flags) for flags in (*first, *second)})
    if len(counts) != 1 or counts[0] == 0:
        raise UserError(f"only flags of the same images can be paired, got {', '.join(map(str, counts))} flags")
    rows = [np.array([[flag == "1" for flag in flags] for flags in row], dtype=int) for row in (first, second)]
    differences = rows[0].mean(0) - rows[1].mean(0)
    n, mean = len(differences), float(differences.mean())
    parts = [(float(differences.var()) / n, n - 1)]
    parts += [(float(flags.mean(1).var(ddof=1)) / len(flags), len(flags) - 1) for flags in rows if len(flags) > 1]
    total = sum(part for part, _ in parts)
    if len(first) == len(second) == 1:
        b, c = int((differences > 0).sum()), int((differences < 0).sum())
        p = float(binomtest(b, b + c).pvalue) if b + c else 1.0
    elif total:
        freedom = total**2 / sum(part**2 / max(degrees, 1) for part, degrees in parts)
        p = 2 * float(student_t.sf(abs(mean) / math.sqrt(total), freedom))
    else:
        p = float(mean == 0)
    return Paired(n, 100 * mean, 100 * math.sqrt(total), p)


def worst_case(accuracies: Sequence[Accuracy]) -> WorstCase | None:
    """The accuracy per image over all columns with a radius, clean included, on the images that they share, or None."""
    return min(worst_cases(accuracies), key=lambda case: case.n, default=None)


def worst_cases(accuracies: Sequence[Accuracy]) -> list[WorstCase]:
    """The lowest first: on each number of images that a column with a radius has, over all columns that have as many.

    The first is a headline: no column's accuracy is below it, though the dearest attack may see easier images.
    """
    bounded = [a for a in accuracies if ATTACKS[a.column.attack].bounded]
    if all(a.column.attack == "clean" for a in bounded):
        return []
    cases = []
    for n in {a.n for a in bounded}:
        seen = [a for a in bounded if a.n >= n]
        flags = "".join(min(each) for each in zip(*(a.flags[:n] for a in seen), strict=True))
        cases.append(WorstCase(flags.count("1"), n, tuple(a.column.name for a in seen), flags))
    return sorted(cases, key=lambda case: (case.percent, case.n))


def not_attacked(accuracies: Sequence[Accuracy]) -> list[str]:
    """One sentence where attacks had no finite gradient to follow, with the images; else nothing."""
    blind = sorted({image for a in accuracies for image in a.blind})
    if not blind:
        return []
    named = ", ".join(map(str, blind[:10])) + (f" and {len(blind) - 10} more" if len(blind) > 10 else "")
    attacks = ", ".join(a.column.name for a in accuracies if a.blind)
    lost = f"without a finite gradient to follow (NaN, no_grad or a detached output), in {attacks}"
    return [f"{len(blind)} images were not attacked, {lost}; none counts as right: {named}"]


def contradictions(accuracies: Sequence[Accuracy]) -> list[str]:
    """What cannot be if every attack does its work, one sentence each.

    Images that were not attacked; an attack on the network itself above the clean accuracy of its images; an image of a
    frozen attack that is right again after more steps of the very same.
    """
    sentences = not_attacked(accuracies)
    for clean in [a for a in accuracies if a.column.attack == "clean"][:1]:
        for a in (a for a in accuracies if a is not clean and not a.column.surrogate):
            n = min(a.n, clean.n)
            right, without = a.flags[:n].count("1"), clean.flags[:n].count("1")
            if right > without:
                sentences.append(f"{a.column.name} leaves {right} of {n} images right, without it {without} are")
    frozen = [a for a in accuracies if ATTACKS[a.column.attack].freeze]
    for short, long in ((a, b) for a in frozen for b in frozen if a.column.steps < b.column.steps and a.n == b.n):
        back = sum(one < other for one, other in zip(short.flags, long.flags, strict=True))
        if back and replace(short.column.what, steps=1) == replace(long.column.what, steps=1):
            sentences.append(f"{long.column.name} has {back} images right that {short.column.name} broke")
    return sentences
