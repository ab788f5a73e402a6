"""Attacks maximise a per-image function of the input; they know neither labels nor networks."""

from lib.attacks.autoattack import STAGES, Result, standard
from lib.attacks.cw2 import cw2
from lib.attacks.fast import EXECUTIONS, PRECISIONS, Engine, in_precision
from lib.attacks.jsma import jsma, published_target, wrong_target
from lib.attacks.pgd import (
    Net,
    Objective,
    PerImage,
    Start,
    at_image,
    gaussian,
    gaussian_in_image,
    input_gradient,
    pgd,
    project,
    uniform,
    uniform_in_image,
)
from lib.attacks.stopping import CountRight, StoppingCriterion, Trajectory, UntilConverged, UntilGap, UntilWrong
