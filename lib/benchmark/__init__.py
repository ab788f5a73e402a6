"""The speed benchmark: released attacks, steps and evaluations written out plainly, and two forms timed in turns."""

from lib.benchmark.measure import in_turns, peak_memory, ratios
from lib.benchmark.released import RELEASED, Case, SpeedParameters, flags, noise, pgd_forms, step_forms, training
