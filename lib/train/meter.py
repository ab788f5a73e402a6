"""The cost of an epoch, or of one call: seconds, and peak memory."""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

if sys.platform != "win32":
    import resource

KEYS = ("seconds", "peak_mb")  # of `Meter.read`, and of every epoch in a run's history


class Meter:
    """Measures from its making to `read`; on a GPU the allocator's peak is reset at the start."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.begun, self.on_gpu = device, time.monotonic(), device.type == "cuda"
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> dict[str, float]:
        """Seconds, and peak MB: since the making on a GPU, of the process's whole life on a CPU."""
        drain(self.device)
        peak = float("nan")
        if self.on_gpu:
            peak = torch.cuda.max_memory_reserved(self.device)  # a recorded attack's own memory is in it
        elif sys.platform != "win32":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"seconds": round(time.monotonic() - self.begun, 3), "peak_mb": round(peak / 1e6, 1)}


def timed(work: Callable[[], Any], device: torch.device, clock: str = "perf_counter") -> tuple[Any, float]:
    """What one call returns, and its seconds on a clock of `time` from an empty queue of the device to an empty one."""
    now = getattr(time, clock)
    drain(device)
    begun = now()
    result = work()
    drain(device)
    return result, now() - begun


def drain(device: torch.device) -> None:
    """Wait until the device's queue is empty."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
