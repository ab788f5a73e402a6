"""The speed benchmark: what is timed, and the tables that come of it."""

from lib.benchmark.agreement import agreement, changes, digits_net, each_alone, trainings
from lib.benchmark.bars import BARS, BEYOND, EXACT, FLAGS, GROWTH, MEMORY, PEAK, PGD, SHIFT, STEP, bars, share_of_peak
from lib.benchmark.cases import LAS, TITLES, Case, Given, ReleasedStep, case, training
from lib.benchmark.forms import attack_of, our_step, pgd_forms, unswitched
from lib.benchmark.measure import Timer, in_turns, ratios
from lib.benchmark.settings import SpeedParameters, validate
from lib.benchmark.tables import RADIUS, curves, growth, memory, noise, paired, steps, warm_ups

__all__ = [
    "BARS",
    "BEYOND",
    "EXACT",
    "FLAGS",
    "GROWTH",
    "LAS",
    "MEMORY",
    "PEAK",
    "PGD",
    "RADIUS",
    "SHIFT",
    "STEP",
    "TITLES",
    "Case",
    "Given",
    "ReleasedStep",
    "SpeedParameters",
    "Timer",
    "agreement",
    "attack_of",
    "bars",
    "case",
    "changes",
    "check",
    "curves",
    "digits_net",
    "each_alone",
    "growth",
    "in_turns",
    "memory",
    "noise",
    "our_step",
    "paired",
    "pgd_forms",
    "ratios",
    "share_of_peak",
    "steps",
    "training",
    "trainings",
    "unswitched",
    "warm_ups",
]
