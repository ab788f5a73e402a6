"""Robust accuracy that a sceptical reader can trust: protocols, accuracies, paired comparisons, sanity checks.

    print(report(model, images, labels, protocol="common"))

`report` is for any classifier; the tables call `evaluate`, which keeps every image's flag.
"""

from lib.evaluate.accuracy import VERSION, Resources, accuracy, check_fits, check_perturbation, evaluate, together
from lib.evaluate.any_model import Report, report
from lib.evaluate.attacks import ATTACKS, STAGES, AttackSpec, EvaluationAttack, changed, describe_all, wrong_unit
from lib.evaluate.landscape import calibration_error, rescued
from lib.evaluate.protocols import PRESETS, PROTOCOLS, RADIUS, at_radius, columns_of, heading
from lib.evaluate.sanity import CHECKS, Finding, sanity_checks, strip, summary
from lib.evaluate.significance import Accuracy, Paired, WorstCase, contradictions, paired, wilson, worst_case
