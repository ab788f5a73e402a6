"""The speed benchmark: what is timed, and the tables that come of it."""

from lib.speed.agreement import agreement, digits_net, each_alone, trainings
from lib.speed.bars import BARS, BEYOND, GROWTH, MEMORY, PEAK, PGD, STEP, bars, share_of_peak
from lib.speed.cases import LAS, TITLES, Case, Given, ReleasedStep, case, training
from lib.speed.forms import attack_of, habits, our_step, pgd_forms
from lib.speed.found import RADIUS, curves, growth, held, noise, paired, steps, warm_ups
from lib.speed.measure import Timer, in_turns, ratios
from lib.speed.settings import Settings, check

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
    "habits",
    "held",
    "in_turns",
    "noise",
    "our_step",
    "paired",
    "pgd_forms",
    "ratios",
    "share_of_peak",
    "steps",
    "training",
    "trainings",
    "warm_ups",
]
