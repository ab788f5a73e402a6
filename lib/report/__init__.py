"""Reported beside measured: the comparison, differences and controls, histories, and what they were made with."""

from lib.report.compare import compare, kept_results, reported_and_kept
from lib.report.differences import (
    gains,
    measurements,
    protocols,
    teachers_table,
    undefended_control,
    under_both,
    versus,
)
from lib.report.guides import command, computed, errata, guessed, linked, measured, overview, steps
from lib.report.histories import THIS_LIBRARY, followed, histories, las_at_passes, picks_summary, strategy_steps, times
from lib.report.render import finish, save, save_own, source
from lib.report.reported import choices, paper, printed, reported_table, row_key
from lib.report.verdicts import paired_heatmap, paired_matrix, verdicts
