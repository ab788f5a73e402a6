"""Reported beside measured: the comparison, the leads, the controls, and what they were made with."""

from lib.report.compare import compare
from lib.report.differences import gains, versus
from lib.report.display import histories, provenance_table, sanity_strip, source
from lib.report.guides import followed, rescued
from lib.report.histories import HERE, las_at_cost, las_at_passes, picked, picks_per_epoch, strategy_steps, times
from lib.report.protocols import also_measured, protocols, teachers_table, undefended_control, under_both
from lib.report.render import save, save_own
from lib.report.reported import choices, paper, printed, reported_table, reported_with_sources, row_key

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
    "picks_per_epoch",
    "printed",
    "protocols",
    "provenance_table",
    "reported_table",
    "reported_with_sources",
    "rescued",
    "row_key",
    "sanity_strip",
    "save",
    "save_own",
    "source",
    "strategy_steps",
    "teachers_table",
    "times",
    "under_both",
    "versus",
]
