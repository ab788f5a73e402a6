"""Reported beside measured: the comparison, differences and controls, histories, and what they were made with."""

from lib.report.closing import finish
from lib.report.compare import compare
from lib.report.differences import gains, rescued, versus
from lib.report.histories import THIS_LIBRARY, followed, histories, las_at_passes, picks_summary, strategy_steps, times
from lib.report.kept import kept_results, reported_and_kept
from lib.report.protocols import accuracies, protocols, teachers_table, undefended_control, under_both
from lib.report.render import provenance_table, save, save_own, source
from lib.report.reported import choices, paper, printed, reported_table, reported_with_sources, row_key
from lib.report.verdicts import paired_heatmap, paired_matrix, verdicts
