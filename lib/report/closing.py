"""The end of a notebook: what it made is saved, and what that was made with is shown."""

from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from lib.experiment.table import Table
from lib.report.plot_style import save as save_figure
from lib.report.render import Comparison, provenance_table, save


def finish(table: Table, comparison: Comparison, **figures: Figure) -> Styler:
    """Save the table, and each figure under its name, below the parameter `outputs`; return the provenance.

    finish(table, comparison, fig5_dynat=figure) writes figures/fig5_dynat.png and .pdf.
    """
    outputs = table.workspace.outputs
    saved = save(comparison, outputs)
    for name, figure in figures.items():
        saved += save_figure(figure, name, outputs)
    return provenance_table(comparison, saved)
