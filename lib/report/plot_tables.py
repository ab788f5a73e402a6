"""A comparison's numbers as plots: its rows beside each other, or along a setting."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.experiment.planning import Result
from lib.experiment.table import Table
from lib.report.plot_style import BESIDE, finished, intervals, panels
from lib.report.render import Comparison
from lib.report.results import of_teachers


def robust_against_clean(table: Table, comparison: Comparison, results: list[Result], robust: str) -> Figure:
    """Accuracy under `robust` against clean accuracy: a point per row with its intervals, teachers as faint stars.

    One panel per student and teacher. The reported points are drawn faint in the lower panels, on their own axes:
    they are another data set's wherever the scale is reduced.
    """
    blocks = [(student, teacher) for student in table.students for teacher in table.teacher_names]
    figure, axes = panels(2, len(blocks), 1.25, 4.6)
    colours, rows = sns.color_palette("colorblind", 10), [row.row for row in table.rows]
    for (student, teacher), (upper, lower) in zip(blocks, axes.T, strict=True):
        block = comparison.frame.query("student == @student and teacher == @teacher").set_index(["row", "column"])
        for i, row in enumerate(rows):
            if (row, robust) in block.index:
                x, y = block.loc[(row, "Clean")], block.loc[(row, robust)]
                look = {"color": colours[i % 10], "marker": "os^Dv"[i // 10 % 5], "ls": "", "ms": 5}
                bars = {"xerr": intervals(x)[:, None], "yerr": intervals(y)[:, None], "elinewidth": 0.7}
                upper.errorbar(x.measured, y.measured, label=row, **bars, **look)
                lower.plot(x.reported, y.reported, alpha=0.4, **look)
        for own in (one for one in of_teachers(results) if one.student == teacher):
            percent = {a.column.name: a.percent for a in own.accuracies}
            star = {"ms": 10, "color": "grey", "alpha": 0.5, "label": "the teacher"}
            upper.plot(percent["Clean"], percent[robust], "*", **star)
        upper.set_title(f"{student}\n← {teacher}" if teacher else student, fontsize=8)
        upper.set_ylabel(f"measured {robust}, %")
        lower.set_ylabel(f"reported {robust}, %")
    axes[0, 0].set_ylabel(f"measured {comparison.headings[robust]}, %")
    figure.supxlabel("clean accuracy, %", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), **BESIDE | {"fontsize": None})
    return finished(figure)


def sweep(comparison: Comparison, line: str, axis: str, label: str = "fixed") -> Figure:
    """Each column's measured accuracy over the rows' names read as numbers, and the row `line` as a level, with bands.

    A name may say what the number is: "k=40". Rows whose name holds none are levels too. Bars and bands are the 95 %
    Wilson intervals.
    """
    figure, axes = panels(1, len(comparison.headings), 1, 2.8)
    for panel, (column, heading) in zip(axes[0], comparison.headings.items(), strict=True):
        frame = comparison.frame[comparison.frame["column"] == column].set_index("row")
        last_words = frame.index.to_series().str.split("=").str[-1]
        numbers = pd.to_numeric(last_words, errors="coerce").mask(frame.index == line).sort_values()
        points = frame.loc[numbers.dropna().index]
        if len(points):
            bars = {"yerr": intervals(points), "fmt": "o-", "ms": 4, "lw": 1}
            panel.errorbar(numbers[points.index], points["measured"], label=label, **bars)
        for i, level in enumerate(frame[numbers.isna()[frame.index]].itertuples()):
            panel.axhline(level.measured, color=f"C{3 + i}", ls=":", label=level.Index)
            panel.axhspan(level.low, level.high, color=f"C{3 + i}", alpha=0.1, lw=0)
        panel.set(xlabel=axis, ylabel=f"{heading}, %")
    axes[0, 0].legend(frameon=False)
    return finished(figure)


def bars(comparison: Comparison, kind: str = "measured") -> Figure:
    """Each column's accuracy as a group of bars, one per row, with the 95 % Wilson intervals where it was measured.

    `kind` is measured or reported.
    """
    figure, axes = panels(1, 1, 1, 3.0)
    wide = comparison.frame.pivot_table(kind, "column", "row", aggfunc="first", sort=False, dropna=False)
    reach = np.stack([intervals(own) for _, own in comparison.frame.groupby("row", sort=False)])
    bars = {"yerr": reach if kind == "measured" else None, "error_kw": {"lw": 0.7}, "width": 0.8}
    wide.astype(float).plot.bar(ax=axes[0, 0], rot=0, ylabel=f"{kind} accuracy, %", **bars)
    headings = [comparison.headings[column].replace(" (", "\n(") for column in wide.index]
    axes[0, 0].set_xticks(range(len(wide)), headings if kind == "measured" else wide.index, fontsize=7)
    axes[0, 0].set_xlabel("column of the table")
    axes[0, 0].legend(frameon=False, fontsize=7, loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.0))
    return finished(figure)


def ranked(comparison: Comparison, column: str) -> Figure:
    """One column's accuracy as lying bars, a row each and a panel per block; below, faint, the paper's numbers."""
    blocks = dict(iter(comparison.frame[comparison.frame["column"] == column].groupby("student", sort=False)))
    figure, axes = panels(2, len(blocks), 1.25, 1.0 + 0.4 * max(map(len, blocks.values())), sharex="row")
    for (block, frame), pair in zip(blocks.items(), axes.T, strict=True):
        for axis, kind, alpha in zip(pair, ("measured", "reported"), (1.0, 0.4), strict=True):
            reach = intervals(frame) if kind == "measured" else None
            look = {"color": "C0", "alpha": alpha, "error_kw": {"lw": 0.7}}
            axis.barh(frame["row"], frame[kind].astype(float), xerr=reach, **look)
            axis.invert_yaxis()
            axis.set(xlabel=f"{kind} {column}, %", ylabel="row")
            axis.tick_params(axis="y", labelsize=7)
        pair[0].set_title(block)
    return finished(figure)
