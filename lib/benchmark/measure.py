"""What is measured: ratios of rounds in turn, the bytes that a piece of work holds, operations per second."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakSet, finalize

import pandas as pd
import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.benchmark import timing
from lib.benchmark.timing import Timed, ratio
from lib.experiment.cost import counted
from lib.train.meter import drain, seconds

Work = Callable[[], object]
Name = TypeVar("Name")


@dataclass(frozen=True)
class Timer:
    """Where work runs, and which clock times it: the wall's, or this process's own processor time."""

    device: torch.device
    clock: Callable[[], float] = time.perf_counter


def in_turns(works: Mapping[Name, Work], repeats: int, timer: Timer, warm_up: int = 1) -> dict[Name, Timed]:
    """`timing.in_turns`, each work called `warm_up` times before, and the device's queue drained with every call."""
    whole = {name: drained(work, timer.device) for name, work in works.items()}
    for _ in range(warm_up):
        for work in whole.values():
            work()
    return timing.in_turns(whole, repeats, timer.clock)


def drained(work: Work, device: torch.device) -> Work:
    """The work, and what it left in the device's queue; its result is dropped."""

    def whole() -> None:
        work()
        drain(device)

    return whole


def ratios(taken: Mapping[str, Timed], base: str) -> pd.DataFrame:
    """How many times as fast as `base` each contender is: of the medians, and the lowest and highest of the rounds.

    Then the seconds: median, shortest, longest. One row per contender, in order.
    """
    rows = {}
    for name, timed in taken.items():
        share = ratio(taken[base], timed)
        rows[name] = {"times as fast": share.median, "lowest": share.low, "highest": share.high}
        rows[name] |= {"seconds": timed.median, "shortest": min(timed.seconds), "longest": max(timed.seconds)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("form")


def peak_memory(work: Work, device: torch.device) -> int:
    """Bytes that one call held at most beyond those from before: by `Allocations`; on a GPU, what was reserved."""
    gc.collect()  # what an earlier work left is not to be freed in this one's time
    if device.type == "cuda":
        drain(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        work()
        drain(device)
        return torch.cuda.max_memory_reserved(device) - before
    with Allocations() as made:
        work()
    return made.most


class Allocations(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and still held: now, and at most.

    What an operation allocates and frees again inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.storages: WeakSet[UntypedStorage] = WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in given:
                self._hold(storage)
        return result

    def _hold(self, storage: UntypedStorage) -> None:
        if storage not in self.storages:
            self.storages.add(storage)
            self._change(storage.nbytes())
            finalize(storage, self._change, -storage.nbytes())

    def _change(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


CHAIN = {"cpu": 1, "cuda": 20}  # products in a row: a GPU's single one is over before its start is noticed


def matmul_peak(timer: Timer, dtype: torch.dtype, sizes: Sequence[int] = (), repeats: int = 5) -> float:
    """FLOP/s of products of two square matrices, the best of sizes and repeats: what "all of it" is measured by."""
    wanted = sizes or ((2048, 4096, 8192) if timer.device.type == "cuda" else (512, 1024, 2048))
    return max(_product(timer, dtype, size) for size in wanted for _ in range(repeats))


def _product(timer: Timer, dtype: torch.dtype, size: int) -> float:
    a, b = torch.randn(2, size, size, device=timer.device).to(dtype)
    a @ b
    count = CHAIN.get(timer.device.type, 1)

    def products() -> None:
        for _ in range(count):
            a @ b

    return count * 2 * size**3 / seconds(products, timer.device, timer.clock)


def achieved(work: Work, plain: Work, timer: Timer, repeats: int) -> float:
    """FLOP/s of a piece of work: the operations of `plain`, which does the same unrecorded, by the median's seconds."""
    work(), work()
    taken = [seconds(work, timer.device, timer.clock) for _ in range(repeats)]
    return counted(plain) / statistics.median(taken)
