"""Robust accuracy that a sceptical reader can trust: protocols, accuracies, paired comparisons, sanity checks.

    print(report(model, images, labels, protocol="common"))

`report` is for any classifier; the tables call `evaluate`, which keeps every image's flag.
"""

from lib.evaluate.accuracy import VERSION, Resources, accuracy, check_fits, check_perturbation, evaluate, together
from lib.evaluate.any_model import Report, report
from lib.evaluate.attack_spec import Accuracy, AttackSpec, changed, describe_all, wilson
from lib.evaluate.attacks import ATTACKS, STAGES, STEPPED, EvaluationAttack
from lib.evaluate.findings import Finding, strip, summary
from lib.evaluate.protocols import PRESETS, PROTOCOLS, RADIUS, at_radius, columns_of, heading
from lib.evaluate.sanity import CHECKS, sanity_checks
from lib.evaluate.significance import Paired, WorstCase, contradictions, mcnemar, paired, worst_case
