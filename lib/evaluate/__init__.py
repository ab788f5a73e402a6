"""Robust accuracy that a sceptical reader can trust: presets, measurements, paired comparisons, sanity checks.

    print(report(model, images, labels, protocol="common"))

`report` is for any classifier; the tables call `evaluate`, which keeps every image's flag.
"""

from lib.evaluate.attacks import ATTACKS, STAGES, STEPPED, EvaluationAttack
from lib.evaluate.checks import CHECKS, Finding, sanity
from lib.evaluate.columns import Accuracy, Column, all_said, wilson
from lib.evaluate.measure import VERSION, Means, accuracy, check_fits, check_perturbation, evaluate, frozen, together
from lib.evaluate.own import Report, changed, columns_of, report
from lib.evaluate.paired import Paired, WorstCase, contradictions, mcnemar, paired, worst_case
from lib.evaluate.presets import PRESETS, PROTOCOLS, RADIUS, at_radius, heading
from lib.evaluate.strip import strip, summary

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
    "Column",
    "EvaluationAttack",
    "Finding",
    "Means",
    "Paired",
    "Report",
    "WorstCase",
    "accuracy",
    "all_said",
    "at_radius",
    "changed",
    "check_fits",
    "check_perturbation",
    "columns_of",
    "contradictions",
    "evaluate",
    "frozen",
    "heading",
    "mcnemar",
    "paired",
    "report",
    "sanity",
    "strip",
    "summary",
    "together",
    "wilson",
    "worst_case",
]
