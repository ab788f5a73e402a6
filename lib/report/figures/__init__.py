"""Plots in one style, each from the values that a notebook has at hand.

figure = robust_against_clean(table, comparison, results, robust="AA")
save(figure, "table4_dgad", table.workspace.outputs)
"""

from lib.report.figures.images import adversarial_grid, beliefs
from lib.report.figures.measured import cost_curves, curves, surfaces
from lib.report.figures.style import save, use_style
from lib.report.figures.tables import bars, ranked, robust_against_clean, sweep
from lib.report.figures.training import followed, history, picks, policies

__all__ = [
    "adversarial_grid",
    "bars",
    "beliefs",
    "cost_curves",
    "curves",
    "followed",
    "history",
    "picks",
    "policies",
    "ranked",
    "robust_against_clean",
    "save",
    "surfaces",
    "sweep",
    "use_style",
]
