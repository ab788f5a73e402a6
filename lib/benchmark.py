"""Measurements side by side in one process: contenders take turns, medians with their spread, ratios first."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

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
    """Bytes that one call held at most beyond what was held before it, as torch's allocator counts them."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _peak_of_allocations(work)


def _peak_of_allocations(work: Work) -> int:
    """The same on the CPU: the highest running total of the profiler's allocations and releases."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as trace:
        work()
    changes = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        highest = max(highest, held)
    return highest


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
