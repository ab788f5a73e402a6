"""The speed benchmark: released attacks, steps and evaluations written out plainly, and two forms timed in turns."""

from lib.benchmark.forms import Case, ReleasedStep, SpeedParameters, noise, pgd_forms, step_forms, training
from lib.benchmark.measure import Timed, in_turns, peak_memory, ratios
from lib.benchmark.released import RELEASED, attack, flags
