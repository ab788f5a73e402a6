"""The cost of an epoch, or of one call: seconds, and peak memory."""

import sys
import time
from collections.abc import Callable

import torch

if sys.platform != "win32":
    import resource

KEYS = ("seconds", "peak_mb")
"""Of `Meter.read`, and of every epoch in a run's history."""


class Meter:
    """Measures from its making to `read`; on a GPU the allocator's peak is reset at the start."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.begun = device, time.monotonic()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> dict[str, float]:
        """Seconds, and peak MB: since the making on a GPU, of the process's whole life on a CPU."""
        drain(self.device)
        return {"seconds": round(time.monotonic() - self.begun, 3), "peak_mb": round(self._peak() / 1e6, 1)}

    def _peak(self) -> float:
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_reserved(self.device))  # a recorded attack's own memory is in it
        if sys.platform == "win32":
            return float("nan")
        unit = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def seconds(work: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, from an empty queue of the device to an empty queue."""
    drain(device)
    begun = clock()
    work()
    drain(device)
    return clock() - begun


def drain(device: torch.device) -> None:
    """Wait until the device's queue is empty."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
