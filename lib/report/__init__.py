"""Reported beside measured: the comparison, the leads, the controls, and what they were made with."""

from lib.render import save, save_own
from lib.report.also import also_measured, floor, protocols, teachers_table, under_both
from lib.report.compare import compare
from lib.report.guides import followed, rescued
from lib.report.las_at import HERE, las_at_cost, las_at_passes, picked, strategy_steps, times, told_picks
from lib.report.leads import gains, versus
from lib.report.numbers import choices, paper, printed, reported_table, reported_with_sources, row_key
from lib.report.shown import histories, provenance_table, shown_strip, source

__all__ = [
    "HERE",
    "also_measured",
    "choices",
    "compare",
    "floor",
    "followed",
    "gains",
    "histories",
    "las_at_cost",
    "las_at_passes",
    "paper",
    "picked",
    "printed",
    "protocols",
    "provenance_table",
    "reported_table",
    "reported_with_sources",
    "rescued",
    "row_key",
    "save",
    "save_own",
    "shown_strip",
    "source",
    "strategy_steps",
    "teachers_table",
    "times",
    "told_picks",
    "under_both",
    "versus",
]
