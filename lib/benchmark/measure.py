"""What a piece of work costs: seconds, several works in turns in one process, and the memory that it holds at most.

timed = in_turns({"plain": slow, "fast": quick}, rounds=3, device=torch.device("cpu"))
ratios(timed, base="plain")
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet, finalize

import pandas as pd
import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.errors import UserError
from lib.train.meter import drain

Work = Callable[[], Any]


@dataclass(frozen=True)
class Timed:
    """Wall-clock seconds of one work, round by round, and what it returned in the last round."""

    seconds: tuple[float, ...]
    result: Any = None

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.seconds)


def in_turns(works: Mapping[Any, Work], rounds: int, device: torch.device, warm_up: int = 0) -> dict[Any, Timed]:
    """Every work once per round, in an order that is reversed after each; `warm_up` rounds before are not counted.

    The device's queue is empty when a work's clock starts and when it stops.

    Raises:
        UserError: fewer than one round.
    """
    if rounds < 1:
        raise UserError(f"a benchmark needs at least 1 round, got {rounds}")
    seconds: dict[Any, list[float]] = {name: [] for name in works}
    results = {}
    for number in range(-warm_up, rounds):
        for name in list(works)[:: 1 if number % 2 == 0 else -1]:
            drain(device)
            started = time.perf_counter()
            results[name] = works[name]()
            drain(device)
            seconds[name].append(time.perf_counter() - started)
    return {name: Timed(tuple(seconds[name][warm_up:]), results[name]) for name in works}


def ratios(timed: Mapping[str, Timed], base: str) -> pd.DataFrame:
    """How many times as fast as `base` each form is: by the medians, with the lowest and the highest round's ratio.

    Then its seconds: median, shortest, longest. One line per form.
    """
    lines = {}
    for name, form in timed.items():
        rounds = [slow / fast for slow, fast in zip(timed[base].seconds, form.seconds, strict=True)]
        share = timed[base].median / form.median
        lines[name] = [share, min(rounds), max(rounds), form.median, min(form.seconds), max(form.seconds)]
    columns = ["times as fast", "lowest", "highest", "seconds", "shortest", "longest"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns)


def peak_memory(make: Callable[[], Work], device: torch.device) -> int:
    """Bytes that work holds at most, from when it is made to its second call: allocated on a CPU, reserved on a GPU."""
    gc.collect()  # what earlier work left must not be freed during this one
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        _twice(make())
        return torch.cuda.max_memory_reserved(device) - before
    with Allocations() as allocations:
        _twice(make())
    return allocations.most


def _twice(work: Work) -> None:
    work()
    work()


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside and still alive: now, and at most.

    What an operation allocates and frees inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.storages: WeakSet[UntypedStorage] = WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for storage in {leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)} - given:
            if storage not in self.storages:
                self.storages.add(storage)
                self._add(storage.nbytes())
                finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)
