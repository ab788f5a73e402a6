"""What a piece of work costs: seconds, several works in turns in one process, and the memory that it holds at most.

seconds, results = in_turns({"plain": slow, "fast": quick}, rounds=3, device=torch.device("cpu"))
ratios(seconds, base="plain")
"""

import gc
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any
from weakref import WeakSet, finalize

import pandas as pd
import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.train.meter import timed

Work = Callable[[], Any]


def in_turns(
    works: Mapping[Any, Work], rounds: int, device: torch.device, warm_up: int = 0
) -> tuple[pd.DataFrame, dict[Any, Any]]:
    """Wall-clock seconds, one line per round and a column per work, and what each work returned in the last round.

    The order of the works is reversed after each round; `warm_up` rounds before the others are not counted. The
    device's queue is empty when a work's clock starts and when it stops.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in works}
    results = {}
    for number in range(-warm_up, rounds):
        for name in list(works)[:: 1 if number % 2 == 0 else -1]:
            results[name], taken = timed(works[name], device)
            seconds[name].append(taken)
    return pd.DataFrame(seconds).iloc[warm_up:], results


def ratios(seconds: pd.DataFrame, base: str) -> pd.DataFrame:
    """How many times as fast as `base` each column is, by the medians and in its lowest and highest round.

    Then its seconds: median, shortest, longest. One line per column of `seconds`.
    """
    medians, rounds = seconds.median(), seconds.rdiv(seconds[base], axis=0)
    speed = {"times as fast": medians[base] / medians, "lowest": rounds.min(), "highest": rounds.max()}
    return pd.DataFrame({**speed, "seconds": medians, "shortest": seconds.min(), "longest": seconds.max()})


def peak_memory(make: Callable[[], Work], device: torch.device) -> int:
    """Bytes that work holds at most, from when it is made to its second call: allocated on a CPU, reserved on a GPU."""
    gc.collect()  # what earlier work left must not be freed during this one
    gpu, allocations = device.type == "cuda", Allocations()
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
    with nullcontext() if gpu else allocations:
        work = make()
        work()
        work()
    return torch.cuda.max_memory_reserved(device) - before if gpu else allocations.most


class Allocations(TorchDispatchMode):
    """Bytes of tensors made inside and still alive: `now`, and at `most`. An operation's own workspace is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: WeakSet[UntypedStorage] = WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.known.update(_storages((args, kwargs)))
        for storage in _storages(result).difference(self.known):
            self.known.add(storage)
            self._add(storage.nbytes())
            finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def _storages(tree: Any) -> set[UntypedStorage]:
    return {leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
