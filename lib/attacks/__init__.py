"""Attacks maximise a per-image function of the input; they know neither labels nor networks."""

from lib.attacks.cw2 import cw2
from lib.attacks.jsma import published_target, wrong_target
from lib.attacks.pgd import Objective, Start, at_image, gaussian, gaussian_in_image, pgd, uniform, uniform_in_image
from lib.attacks.pgd import input_gradient as input_gradient
