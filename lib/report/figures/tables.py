"""A comparison's numbers as plots: its rows beside each other, or along a setting."""

import math
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.experiment.planning import Result
from lib.experiment.table import Table
from lib.report.figures.style import WIDTH, use_style
from lib.report.render import Comparison


def robust_against_clean(table: Table, comparison: Comparison, results: list[Result], robust: str) -> Figure:
    """Accuracy under `robust` against clean accuracy: a point per row with its intervals, teachers as faint stars.

    One panel per student and teacher. The reported points are drawn faint in the lower panels, on their own axes:
    they are another data set's wherever the scale is reduced.
    """
    use_style()
    pairs = [(s, t) for s in table.students for t in table.teacher_names]
    figure, axes = plt.subplots(2, len(pairs), figsize=(1.25 * WIDTH, 4.6), squeeze=False)
    looks = _looks([row.row for row in table.rows])
    for i, (student, teacher) in enumerate(pairs):
        frame = comparison.frame.query("student == @student and teacher == @teacher")
        _measured_panel(axes[0][i], frame, robust, looks)
        _teacher_star(axes[0][i], results, teacher, robust)
        _reported_panel(axes[1][i], frame, robust, looks)
        axes[0][i].set_title(f"{student}\n← {teacher}" if teacher else student, fontsize=8)
        axes[0][i].set_ylabel(f"measured {robust}, %" if i else f"measured {comparison.headings[robust]}, %")
        axes[1][i].set_ylabel(f"reported {robust}, %")
    figure.supxlabel("clean accuracy, %", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.tight_layout()
    sns.despine(figure)
    return figure


def _looks(rows: list[str]) -> dict[str, dict[str, Any]]:
    """A colour for each row, and another marker where the ten colours begin anew."""
    palette = sns.color_palette("colorblind", 10)
    return {row: {"color": palette[i % 10], "marker": "os^Dv"[i // 10 % 5]} for i, row in enumerate(rows)}


def _measured_panel(axis: Axes, frame: pd.DataFrame, robust: str, looks: dict[str, dict[str, Any]]) -> None:
    clean, hard = (frame[frame.column == name].set_index("row") for name in ("Clean", robust))
    for row, look in looks.items():
        if row not in clean.index:
            continue
        x, y = clean.loc[row], hard.loc[row]
        bars = [[[v.measured - v.low], [v.high - v.measured]] for v in (x, y)]
        axis.errorbar(
            x.measured, y.measured, xerr=bars[0], yerr=bars[1], ls="", ms=5, elinewidth=0.7, label=row, **look
        )


def _teacher_star(axis: Axes, results: list[Result], teacher: str, robust: str) -> None:
    for result in results:
        if result.role == "teacher" and result.student == teacher:
            found = {a.column.name: a.percent for a in result.accuracies}
            axis.plot(found["Clean"], found[robust], "*", ms=10, color="grey", alpha=0.5, label="the teacher")


def _reported_panel(axis: Axes, frame: pd.DataFrame, robust: str, looks: dict[str, dict[str, Any]]) -> None:
    clean, hard = (frame[frame.column == name].set_index("row").reported for name in ("Clean", robust))
    for row, look in looks.items():
        if row in clean.index:
            axis.plot(clean[row], hard[row], ls="", ms=5, alpha=0.4, **look)


def sweep(comparison: Comparison, line: str, axis: str, label: str = "fixed") -> Figure:
    """Each column's measured accuracy over the rows' names read as numbers, and the row `line` as a level, with bands.

    A name may say what the number is: "k=40". Rows whose name holds none are levels too. Bars and bands are the 95 %
    Wilson intervals.
    """
    use_style()
    columns = list(comparison.headings)
    figure, axes = plt.subplots(1, len(columns), figsize=(WIDTH, 2.8), squeeze=False)
    for panel, column in zip(axes[0], columns, strict=True):
        frame = comparison.frame[comparison.frame.column == column].set_index("row")
        frame["number"] = [math.nan if name == line else _number(name) for name in frame.index]
        points, levels = frame[frame.number.notna()].sort_values("number"), frame[frame.number.isna()]
        if len(points):
            bars = [points.measured - points.low, points.high - points.measured]
            panel.errorbar(points.number, points.measured, yerr=bars, fmt="o-", ms=4, lw=1, label=label)
        for i, value in enumerate(levels.itertuples()):
            colour = f"C{3 + i}"
            panel.axhline(value.measured, color=colour, ls=":", label=value.Index)
            panel.axhspan(value.low, value.high, color=colour, alpha=0.1, lw=0)
        panel.set(xlabel=axis, ylabel=f"{comparison.headings[column]}, %")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    sns.despine(figure)
    return figure


def _number(name: str) -> float:
    """The number that a row's name is or ends in ("k=40"), nan where it holds none."""
    try:
        return float(name.rpartition("=")[2])
    except ValueError:
        return math.nan


def bars(comparison: Comparison, kind: str = "measured") -> Figure:
    """Each column's accuracy as a group of bars, one per row, with the 95 % Wilson intervals where it was measured.

    `kind` is measured or reported.
    """
    use_style()
    columns, rows = list(comparison.headings), list(dict.fromkeys(comparison.frame.row))
    figure, axis = plt.subplots(figsize=(WIDTH, 3.0))
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        own = comparison.frame[comparison.frame.row == row].set_index("column").loc[columns]
        places = [place + (i - (len(rows) - 1) / 2) * width for place in range(len(columns))]
        axis.bar(places, own[kind].astype(float), width, yerr=_error(own, kind), label=row, error_kw={"lw": 0.7})
    headings = [comparison.headings[column].replace(" (", "\n(") for column in columns]
    axis.set_xticks(range(len(columns)), headings if kind == "measured" else columns, fontsize=7)
    axis.set(xlabel="column of the table", ylabel=f"{kind} accuracy, %")
    axis.legend(frameon=False, fontsize=7, loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    sns.despine(figure)
    return figure


def _error(own: pd.DataFrame, kind: str) -> list[pd.Series] | None:
    """The bars of the measured numbers' intervals; the reported ones have none."""
    return [own.measured - own.low, own.high - own.measured] if kind == "measured" else None


def ranked(comparison: Comparison, column: str) -> Figure:
    """One column's accuracy as lying bars, a row each and a panel per block; below, faint, the paper's numbers."""
    use_style()
    blocks = dict(list(comparison.frame[comparison.frame.column == column].groupby("student", sort=False)))
    most = max(map(len, blocks.values()))
    size = (1.25 * WIDTH, 1.0 + 0.4 * most)
    figure, axes = plt.subplots(2, len(blocks), figsize=size, sharex="row", squeeze=False)
    for (block, frame), pair in zip(blocks.items(), axes.T, strict=True):
        for axis, kind in zip(pair, ("measured", "reported"), strict=True):
            look = {"alpha": 1.0 if kind == "measured" else 0.4, "color": "C0"}
            axis.barh(frame.row, frame[kind].astype(float), xerr=_error(frame, kind), error_kw={"lw": 0.7}, **look)
            axis.invert_yaxis()
            axis.set(xlabel=f"{kind} {column}, %", ylabel="row")
            axis.tick_params(axis="y", labelsize=7)
        pair[0].set_title(block)
    figure.tight_layout()
    sns.despine(figure)
    return figure
