"""Plots in one style, each from the values that a notebook has at hand.

figure = robust_against_clean(table, comparison, results, robust="AA")
save(figure, "table4_dgad", table.place.outputs)
"""

from lib.figures.images import adversarial_grid, beliefs
from lib.figures.measured import cost_curves, curves, surfaces
from lib.figures.style import save, use_style
from lib.figures.tables import bars, ranked, robust_against_clean, sweep
from lib.figures.training import followed, history, picks, policies

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
