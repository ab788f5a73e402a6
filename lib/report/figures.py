"""Plots in one style, each from the values that a notebook has at hand.

figure = robust_against_clean(table, comparison, results, robust="AA")
save(figure, "table4_dgad", table.workspace.outputs)
"""

# ruff: noqa: F401 - a face: what it offers
from lib.report.plot_networks import adversarial_grid, beliefs, cost_curves, curves, surfaces
from lib.report.plot_style import save
from lib.report.plot_tables import bars, ranked, robust_against_clean, sweep
from lib.report.plot_training import followed, history, picks, policies
