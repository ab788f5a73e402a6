"""Several ways of doing the same thing, timed in turns in one process: what shares a machine's moods can be compared.

timed = in_turns({"plain": slow, "here": fast}, rounds=3)
ratio(timed["plain"], timed["here"])
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from lib.errors import UserError

Name = TypeVar("Name")


@dataclass(frozen=True)
class Timed:
    """What one way took, in seconds of wall clock round by round, and what it gave in the last round."""

    seconds: tuple[float, ...]
    result: Any = None

    @property
    def median(self) -> float:
        """The median of the rounds, in seconds."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.median:.3g} s [{min(self.seconds):.3g}, {max(self.seconds):.3g}]"


@dataclass(frozen=True)
class Ratio:
    """How many times as long one way took as another: of the medians, and the smallest and largest of the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def in_turns(
    ways: Mapping[Name, Callable[[], Any]], rounds: int = 3, clock: Callable[[], float] = time.perf_counter
) -> dict[Name, Timed]:
    """Every way once per round, in an order that turns round after each; a first, untimed call is the caller's choice.

    On a GPU a way has to end with what waits for the device, as a copy of its result to the host does.

    Raises:
        UserError: fewer than one round.
    """
    if rounds < 1:
        raise UserError(f"a benchmark wants at least 1 round, got {rounds}")
    seconds: dict[Name, list[float]] = {name: [] for name in ways}
    results = {}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            begun = clock()
            results[name] = ways[name]()
            seconds[name].append(clock() - begun)
    return {name: Timed(tuple(seconds[name]), results[name]) for name in ways}


def ratio(slow: Timed, fast: Timed) -> Ratio:
    """slow over fast: median over median; its spread is that of the rounds, each against its neighbour in time."""
    each = [a / b if b else math.inf for a, b in zip(slow.seconds, fast.seconds, strict=True)]
    return Ratio(slow.median / fast.median if fast.median else math.inf, min(each), max(each))


def total(parts: Mapping[str, Mapping[str, Timed]]) -> dict[str, Timed]:
    """The ways of all parts together: round by round, the sum over the parts."""
    ways = next(iter(parts.values()))
    rounds = {way: zip(*(part[way].seconds for part in parts.values()), strict=True) for way in ways}
    return {way: Timed(tuple(map(sum, each))) for way, each in rounds.items()}


def table(parts: Mapping[str, Mapping[str, Timed]], slow: str, fast: str) -> pd.DataFrame:
    """One line per part, and one for all of them: the ratio first, then each way's median with its spread."""
    lines = {**parts, "all": total(parts)}
    records = {
        name: {f"{slow} / {fast}": str(ratio(part[slow], part[fast])), **{way: str(part[way]) for way in part}}
        for name, part in lines.items()
    }
    return pd.DataFrame(records).T
