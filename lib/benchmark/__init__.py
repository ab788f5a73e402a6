"""Released attacks, steps and evaluations written out plainly, and two forms timed in turns; plans, simulated."""

from lib.benchmark.measure import in_turns, peak_memory, ratios
from lib.benchmark.released import RELEASED, Case, SpeedParameters, flags, noise, pgd_forms, step_forms, training
from lib.benchmark.scheduling import ClusterParameters, compare, longest_chain, simulate
