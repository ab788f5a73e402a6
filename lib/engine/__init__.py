"""How an attack's work is done: switches that make the same step cheaper, and a calibration that picks what pays.

The plain path is `Levers()`, every switch off. What changes more than rounding is bf16 alone, and a run that crafts in
bf16 says so in its spec.
"""

from lib.engine.calibration import Tried, calibrate
from lib.engine.capture import Captured, on_cuda
from lib.engine.core import PRECISIONS, Engine, in_precision
from lib.engine.levers import LEVERS, PLAIN, STANDARD, Levers
from lib.engine.update import stepped_in_backward

__all__ = [
    "LEVERS",
    "PLAIN",
    "PRECISIONS",
    "STANDARD",
    "Captured",
    "Engine",
    "Levers",
    "Tried",
    "calibrate",
    "in_precision",
    "on_cuda",
    "stepped_in_backward",
]
