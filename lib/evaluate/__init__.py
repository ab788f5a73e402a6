"""Robust accuracy that a sceptical reader can trust: presets, measurements, paired comparisons, sanity checks.

    print(report(model, images, labels, protocol="common"))

`report` is for any classifier; the tables call `evaluate`, which keeps every image's flag.
"""

from lib.evaluate.accuracy import VERSION, Resources, accuracy, check_fits, check_perturbation, evaluate, together
from lib.evaluate.any_model import Report, changed, columns_of, report
from lib.evaluate.attack_spec import Accuracy, AttackSpec, describe_all, wilson
from lib.evaluate.attacks import ATTACKS, STAGES, STEPPED, EvaluationAttack
from lib.evaluate.protocols import PRESETS, PROTOCOLS, RADIUS, at_radius, heading
from lib.evaluate.sanity import CHECKS, Finding, sanity_checks
from lib.evaluate.significance import Paired, WorstCase, contradictions, mcnemar, paired, worst_case
from lib.evaluate.strip import strip, summary
from lib.models.modes import frozen

__all__ = [
    "ATTACKS",
    "CHECKS",
    "PRESETS",
    "PROTOCOLS",
    "RADIUS",
    "STAGES",
    "STEPPED",
    "VERSION",
    "Accuracy",
    "AttackSpec",
    "EvaluationAttack",
    "Finding",
    "Paired",
    "Report",
    "Resources",
    "WorstCase",
    "accuracy",
    "at_radius",
    "changed",
    "check_fits",
    "check_perturbation",
    "columns_of",
    "contradictions",
    "describe_all",
    "evaluate",
    "frozen",
    "heading",
    "mcnemar",
    "paired",
    "report",
    "sanity_checks",
    "strip",
    "summary",
    "together",
    "wilson",
    "worst_case",
]
