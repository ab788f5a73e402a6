"""The speed benchmark: what is timed, and the tables that come of it."""

from lib.speed.agreement import agreement, digits_net, each_alone, trainings
from lib.speed.bars import BARS, BEYOND, GROWTH, MEMORY, PEAK, PGD, STEP, bars, share_of_peak
from lib.speed.cases import LAS, TITLES, Case, Given, ReleasedStep, case, training
from lib.speed.forms import attack_of, our_step, pgd_forms, unswitched
from lib.speed.measure import Timer, in_turns, ratios
from lib.speed.settings import Settings, check
from lib.speed.tables import RADIUS, curves, growth, memory, noise, paired, steps, warm_ups

__all__ = [
    "BARS",
    "BEYOND",
    "GROWTH",
    "LAS",
    "MEMORY",
    "PEAK",
    "PGD",
    "RADIUS",
    "STEP",
    "TITLES",
    "Case",
    "Given",
    "ReleasedStep",
    "Settings",
    "Timer",
    "agreement",
    "attack_of",
    "bars",
    "case",
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
