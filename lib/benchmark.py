"""Measurements side by side in one process: contenders take turns, medians with their spread, ratios first."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakSet, finalize

import pandas as pd
import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.cost import counted

Work = Callable[[], object]


def seconds(work: Work, device: str | torch.device = "cpu") -> float:
    """Wall-clock seconds of one call, the device's queue drained before and after."""
    _drain(device)
    begun = time.perf_counter()
    work()
    _drain(device)
    return time.perf_counter() - begun


def in_turns(
    works: Mapping[str, Work], repeats: int, device: str | torch.device = "cpu", warm_up: int = 1
) -> dict[str, list[float]]:
    """{name: seconds of each round}: A B C, A B C, ..., so that a machine that drifts drifts under all of them.

    Every contender first runs `warm_up` times uncounted. A round's entries of two contenders make one ratio.
    """
    for _ in range(warm_up):
        for work in works.values():
            work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append(seconds(work, device))
    return taken


def ratios(taken: Mapping[str, Sequence[float]], base: str) -> pd.DataFrame:
    """How many times as fast as `base` each contender is, from the ratios of each round: median, lowest, highest.

    Then the seconds, the same three. One row per contender, in order.
    """
    shares = {name: [b / own for b, own in zip(taken[base], times, strict=True)] for name, times in taken.items()}
    rows = {name: _row(shares[name], times) for name, times in taken.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("form")


def _row(shares: Sequence[float], times: Sequence[float]) -> dict[str, float]:
    row = {f"times {base}": value for base, value in zip(("faster", "lowest", "highest"), _spread(shares), strict=True)}
    return row | {f"seconds {which}": v for which, v in zip(("median", "least", "most"), _spread(times), strict=True)}


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def peak_memory(work: Work, device: str | torch.device = "cpu") -> int:
    """Bytes that one call held at most beyond what was held before it: a GPU's allocator's count, a CPU's `Held`."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with Held() as held:
        work()
    return held.most


class Held(TorchDispatchMode):
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


def matmul_peak(device: str | torch.device, dtype: torch.dtype, size: int = 2048, repeats: int = 3) -> float:
    """FLOP/s of a product of two square matrices, the best of `repeats`: what "all of the machine" is measured by."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(repeats))


def achieved(work: Work, device: str | torch.device = "cpu") -> float:
    """FLOP/s of a piece of work: its operations counted in one call, the seconds of another."""
    return counted(work) / seconds(work, device)


def _drain(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
