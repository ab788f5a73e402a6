"""A plan on several machines, simulated: a job runs once, alone on its machine, after the jobs that it waits for.

hours, waits_for = {"teacher": 2.0, "student": 3.0}, {"student": {"teacher"}}
simulate(hours, waits_for, order=["teacher", "student"], machines=2)
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from heapq import heappop, heappush
from itertools import islice
from typing import Any

import pandas as pd

from lib.errors import UserError

Hours = Mapping[str, float]
Waits = Mapping[str, Collection[str]]  # a job that is not planned is done


@dataclass(frozen=True)
class ClusterParameters:
    """The parameters of the cluster notebook; raises UserError for what cannot be simulated."""

    scale: str = "paper"
    tables: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    gpus: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64])
    drawn: int = 8
    random_orders: int = 20
    outputs: str = "outputs"
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min([*self.gpus, self.drawn, self.random_orders]) < 1 or not self.gpus:
            raise UserError("gpus is one number or more, and these, drawn and random_orders are at least 1")


def simulate(hours: Hours, waits_for: Waits, order: Sequence[str], machines: int) -> pd.DataFrame:
    """Each job's machine, start and end, where whatever is free takes the first job of `order` that may start.

    Raises ValueError where jobs wait for each other.
    """
    waits = {job: {*waits_for.get(job, ())} & hours.keys() for job in hours}
    waiting, free, running, now = list(order), list(range(machines)), list[tuple[float, int, str]](), 0.0
    done, lines = set[str](), dict[str, tuple[int, float, float]]()
    while waiting or running:
        for job in list(islice((job for job in waiting if waits[job] <= done), len(free))):
            waiting.remove(job)
            machine = heappop(free)
            heappush(running, (now + hours[job], machine, job))
            lines[job] = machine, now, now + hours[job]
        if not running:
            raise ValueError(f"jobs wait for each other: {waiting}")
        now = running[0][0]
        while running and running[0][0] == now:
            _, machine, job = heappop(running)
            heappush(free, machine)
            done.add(job)
    return pd.DataFrame.from_dict(lines, orient="index", columns=["machine", "start", "end"])


def longest_chain(hours: Hours, waits_for: Waits) -> list[str]:
    """The jobs, each waiting for the one before it, that together take longest; no number of machines is faster."""
    waits = {job: {*waits_for.get(job, ())} & hours.keys() for job in hours}
    ends, before = dict[str, float](), dict[str, str | None]()
    for job in TopologicalSorter(waits).static_order():
        before[job] = max(waits[job], key=ends.__getitem__, default=None)
        ends[job] = hours[job] + max((ends[other] for other in waits[job]), default=0.0)
    chain, last = list[str](), max(ends, key=ends.__getitem__, default=None)
    while last is not None:
        chain, last = [last, *chain], before[last]
    return chain


def compare(hours: Hours, waits_for: Waits, orders: Iterable[tuple[str, Sequence[str]]], gpus: list[int]) -> Any:
    """The makespan of each order on so many GPUs, the bound that none can be below, and the share of them in use.

    The bound is the work shared evenly, or the longest chain. Any order takes less than twice as long (Graham 1969).
    """
    total, chain = sum(hours.values()), sum(hours[job] for job in longest_chain(hours, waits_for))
    lines = []
    for name, order in orders:
        for n in gpus:
            makespan = simulate(hours, waits_for, order, n)["end"].max()
            bound = max(total / n, chain)
            lines.append((n, name, makespan, bound, makespan / bound, total / n / makespan))
    return pd.DataFrame(lines, columns=["GPUs", "order", "makespan", "bound", "times the bound", "utilisation"])
