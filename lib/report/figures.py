"""Plots in one style, each from the values that a notebook has at hand.

figure = robust_against_clean(table, comparison, results, robust="AA")
save(figure, "table4_dgad", table.workspace.outputs)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from lib.experiment.planning import Result
from lib.experiment.table import Table
from lib.methods.strategy import UNITS
from lib.report.histories import picks as shares_of_picks
from lib.report.plot_style import ABOVE, BESIDE, DASHES, WIDTH, finished, intervals, panels
from lib.report.plot_style import save as save
from lib.report.render import Comparison
from lib.train.meter import KEYS


def robust_against_clean(table: Table, comparison: Comparison, results: list[Result], robust: str) -> Figure:
    """Accuracy under `robust` against clean accuracy: a point per row with its intervals, teachers as hollow stars.

    One panel per student and teacher. The reported points are drawn faint in the lower panels, on their own axes:
    they are another data set's wherever the scale is reduced.
    """
    blocks = [(student, teacher) for student in table.students for teacher in table.teacher_names]
    printed = bool(comparison.frame["reported"].notna().any())
    figure, axes = panels(1 + printed, len(blocks), 1.25, 3.2 + 1.4 * printed)
    for (student, teacher), (upper, *lower) in zip(blocks, axes.T, strict=True):
        block = comparison.frame.query("student == @student and teacher == @teacher").set_index(["row", "column"])
        block = block[["measured", "low", "high", "reported"]].astype(float)
        for i, row in enumerate(row.row for row in table.rows):
            if (row, robust) in block.index:
                x, y = block.loc[(row, "Clean")], block.loc[(row, robust)]
                look = _point(upper, x, y, row, i)
                for axis in lower:
                    axis.plot(*pd.Series([x.reported, y.reported], dtype=float), alpha=0.4, **look)
        for own in (one for one in results if one.role == "teacher" and one.student == teacher):
            percent = {a.column.name: a.percent for a in own.accuracies}
            star = {"ms": 10, "mfc": "none", "mec": "black", "label": "the teacher"}
            upper.plot(percent["Clean"], percent[robust], "*", **star)
        upper.set_title(f"{student}\n← {teacher}" if teacher else student, fontsize=8)
        for kind, axis in zip(("measured", "reported"), (upper, *lower), strict=False):
            axis.set_ylabel(f"{kind} {robust}, %")
    axes[0, 0].set_ylabel(f"measured {comparison.headings[robust]}, %")
    figure.supxlabel("clean accuracy, %", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), **BESIDE | {"fontsize": None})
    return finished(figure)


def kept(comparison: Comparison, robust: str) -> Figure:
    """Kept accuracy under `robust` against kept clean accuracy, in %: a point per row with its 95 % intervals."""
    figure, ((axis,),) = panels(1, 1, 0.75, 3.2)
    frame = comparison.frame.drop(columns=["measured", "low", "high"]).dropna(subset="kept")
    frame = frame.rename(columns={"kept": "measured", "kept_low": "low", "kept_high": "high"})
    for i, row in enumerate(comparison.frame["row"].unique()):
        values = frame[frame["row"] == row].set_index("column")[["measured", "low", "high"]].astype(float)
        if {"Clean", robust} <= {*values.index}:
            _point(axis, values.loc["Clean"], values.loc[robust], row, i)
    axis.set(xlabel="clean accuracy, %", ylabel=f"{robust}, %")
    figure.legend(*axis.get_legend_handles_labels(), **BESIDE)
    return finished(figure)


def _point(axis: Axes, x: pd.Series, y: pd.Series, label: str, i: int) -> dict[str, Any]:
    """A row's point with its intervals; returns the look that is the row's."""
    look: dict[str, Any] = {"color": f"C{i % 10}", "marker": "os^Dv"[i // 10 % 5], "ls": "", "ms": 5}
    bars: dict[str, Any] = {"xerr": intervals(x)[:, None], "yerr": intervals(y)[:, None], "elinewidth": 0.7}
    axis.errorbar(x["measured"], y["measured"], label=label, **bars, **look)
    return look


def sweep(comparison: Comparison, line: str, axis: str, label: str = "fixed") -> Figure:
    """Each column's measured accuracy over the rows' names read as numbers ("k=40"), with their intervals.

    The row `line`, and rows whose name holds no number, are levels with bands.
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
    """Each column's measured (with intervals) or reported accuracy as a group of bars; a panel per block."""
    blocks = dict(iter(comparison.frame.groupby(["student", "teacher"], sort=False)))
    figure, axes = panels(len(blocks), 1, 1, 3.0 * len(blocks))
    for axis, ((student, teacher), block) in zip(axes[:, 0], blocks.items(), strict=True):
        wide = block.astype({kind: float}).pivot(index="column", columns="row", values=kind)
        wide = wide.loc[block["column"].unique(), block["row"].unique()]
        reach = np.stack([intervals(own) for _, own in block.groupby("row", sort=False)])
        look = {"yerr": reach if kind == "measured" else None, "error_kw": {"lw": 0.7}, "width": 0.8, "legend": False}
        wide.plot.bar(ax=axis, rot=0, ylabel=f"{kind} accuracy, %", xlabel="column of the table", **look)
        headings = [comparison.headings[column].replace(" (", "\n(") for column in wide.index]
        axis.set_xticks(range(len(wide)), headings if kind == "measured" else wide.index, fontsize=7)
        axis.legend(fontsize=7, ncols=2, **ABOVE)
        if len(blocks) > 1:
            axis.set_title(f"{student} ← {teacher}" if teacher else student, fontsize=8, loc="left")
    return finished(figure)


def ranked(comparison: Comparison, column: str) -> Figure:
    """One column's accuracy as lying bars, a row each and a panel per block; below, faint, the paper's numbers."""
    blocks = dict(iter(comparison.frame[comparison.frame["column"] == column].groupby("student", sort=False)))
    figure, axes = panels(2, len(blocks), 1.25, 1.8 + 0.4 * max(map(len, blocks.values())), sharex="row")
    for (block, frame), pair in zip(blocks.items(), axes.T, strict=True):
        for axis, kind, alpha in zip(pair, ("measured", "reported"), (1.0, 0.4), strict=True):
            look = {"xerr": intervals(frame) if kind == "measured" else None, "color": "C0", "alpha": alpha}
            axis.barh(frame["row"], frame[kind].astype(float), error_kw={"lw": 0.7}, **look)
            axis.invert_yaxis()
            axis.set(xlabel=f"{kind} {column}, %", ylabel="row")
            axis.tick_params(axis="y", labelsize=7)
        pair[0].set_title(block)
    return finished(figure)


def policies(shares: Mapping[str, Mapping[str, Tensor]], options: Mapping[str, tuple[float, ...]]) -> Figure:
    """Each setting's probabilities under several policies, as bars side by side; the dotted line is the uniform one.

    `shares` is policy -> setting -> probabilities (options,), `options` is setting -> its values.
    """
    figure, axes = panels(1, len(options), 1, 2.4)
    for panel, (setting, values) in zip(axes[0], options.items(), strict=True):
        names = [f"{UNITS.get(setting, 1) * value:.0f}" for value in values]
        frame = pd.DataFrame({policy: own[setting].tolist() for policy, own in shares.items()}, index=names)
        frame.plot.bar(ax=panel, width=0.8, rot=0, legend=False, xlabel=_with_unit(setting))
        panel.tick_params(axis="x", labelsize=6)
        panel.axhline(1 / len(values), color="grey", ls=":", lw=0.8)
    axes[0, 0].set_ylabel("probability")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), **ABOVE)
    return finished(figure)


def picks(histories: Mapping[str, Path], setting: str = "epsilon") -> Figure:
    """Per run the shares of the options picked in every epoch, the smallest at the bottom, and the mean reward below.

    A run without a reward leaves its lower panel empty; one that picks nothing from options is left out.
    """
    shares = shares_of_picks(histories, setting)
    if shares.empty:
        figure = plt.figure(figsize=(WIDTH, 0.5))
        figure.text(0.5, 0.5, f"no run here picks {setting} from options", ha="center", color="grey")
        return figure
    runs, options = dict(iter(shares.groupby("run", sort=False))), sorted(shares["option"].unique(), reverse=True)
    colours = dict(zip(options, sns.color_palette("viridis", len(options))[::-1], strict=True))
    figure, axes = panels(2, len(runs), max(1.25, 0.25 * len(runs)), 4.2, sharex="col")
    look = {"hue": "option", "hue_order": options, "palette": colours, "multiple": "stack", "discrete": True}
    for (name, run), (upper, lower) in zip(runs.items(), axes.T, strict=True):
        sns.histplot(run, x="epoch", weights="share", ax=upper, lw=0, alpha=1, legend=False, **look)
        upper.set(title=name, ylabel="", ylim=(0, 1), xlim=(0.5, run["epoch"].max() + 0.5))
        rewards = run.drop_duplicates("epoch").set_index("epoch")["reward"].astype(float).dropna()
        lower.plot(rewards.index, rewards, "o-", ms=3, lw=1, color="C3")
        _count_epochs(lower)
        if rewards.empty:
            lower.set_yticks([])
            lower.text(0.5, 0.5, "no reward", ha="center", transform=lower.transAxes, color="grey")
    axes[0, 0].set_ylabel("share of the draws")
    axes[1, 0].set_ylabel("mean reward")
    handles = [Patch(color=colour, label=f"{round(option, 1):g}") for option, colour in colours.items()]
    figure.legend(handles=handles, title=_with_unit(setting), **BESIDE)
    return finished(figure)


def _with_unit(setting: str) -> str:
    return setting + (", in 1/255" if setting in UNITS else "")


def _count_epochs(axis: Axes) -> None:
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def history(path: Path) -> Figure:
    """A run's terms and its PGD-10 accuracy on the selection images, per epoch, from its history.json."""
    frame = pd.read_json(path).set_index("epoch")
    figure, ((left, right),) = panels(1, 2, 1, 2.6)
    terms = frame.drop(columns=["step", "score", "strategy", "followed", *KEYS], errors="ignore")
    terms.plot(ax=left, lw=1, ylabel="mean of the term")
    frame["score"].plot(ax=right, lw=1, color="C3", ylabel="PGD-10 accuracy, %")
    return finished(figure)


def followed(curves: pd.DataFrame, groups: Mapping[str, list[str]], quantities: list[str]) -> Figure:
    """What `report.followed` reads: a line of panels per group (title -> runs), a panel per quantity, a curve per row.

    Several seeds of a row are its mean, in a band from the lowest to the highest. What is not known, or not run, is
    left out. Where the ten colours begin anew, the line is dashed, then dotted.
    """
    groups = {title: runs for title, runs in groups.items() if runs}
    curves = curves.assign(row=curves["run"].str.replace(r", seed \d+$", "", regex=True))
    names = list(dict.fromkeys(curves["row"]))
    look: dict[str, Any] = {"x": "epoch", "hue": "row", "style": "row", "marker": "o", "ms": 2, "lw": 1, "mew": 0}
    look |= {"palette": {name: f"C{i % 10}" for i, name in enumerate(names)}, "errorbar": ("pi", 100), "markers": False}
    look |= {"dashes": {name: DASHES[i // 10 % len(DASHES)] for i, name in enumerate(names)}}
    figure, axes = panels(len(groups), len(quantities), 1.25, 0.4 + 2.3 * len(groups), sharex=True)
    for (title, runs), line in zip(groups.items(), axes, strict=True):
        own = curves[curves["run"].isin(runs)].astype(dict.fromkeys(quantities, float))
        for axis, quantity in zip(line, quantities, strict=True):
            drawn = list(dict.fromkeys(own["row"]))
            given = {"hue_order": drawn, "style_order": drawn, "legend": axis is line[-1] and "full"}
            sns.lineplot(own, y=quantity, ax=axis, **look | given)
            axis.set(title=quantity, ylabel="labels right, %" if quantity == "label right" else "accuracy, %")
        sns.move_legend(line[-1], title=title, **BESIDE)
    for axis in axes[-1]:
        _count_epochs(axis)
    return finished(figure)


def adversarial_grid(net: nn.Module, x: Tensor, x_adv: Tensor, classes: tuple[str, ...], epsilon: float) -> Figure:
    """Clean image, perturbation (grey is zero, the ends are +-epsilon) and adversarial image, with predictions.

    Shapes: x and x_adv (N, C, H, W) in [0, 1]. The caption gives the measured max|x' - x| in 1/255.
    """
    figure, axes = panels(3, len(x), 1, 3.4)
    rows = {"clean": x, "x' - x": 0.5 + (x_adv - x) / (2 * epsilon), "adversarial": x_adv}
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1).cpu().squeeze(-1), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    for line, images in ((axes[0], x), (axes[2], x_adv)):
        with torch.no_grad():
            beliefs = net(images).softmax(1).max(1)
        for axis, p, label in zip(line, beliefs.values.tolist(), beliefs.indices.tolist(), strict=True):
            axis.set_xlabel(f"{classes[label]} ({p:.2f})", fontsize=7)
    largest = float((x_adv - x).abs().max()) * 255
    figure.suptitle(f"max|x' - x| = {largest:.1f}/255, allowed {epsilon * 255:.1f}/255", fontsize=8)
    figure.tight_layout()
    return figure


def beliefs(
    logits: Mapping[str, Tensor], classes: tuple[str, ...], truths: Sequence[int], titles: Sequence[str]
) -> Figure:
    """The softmax of answers (N, C) as bars, N true classes in red: a line of panels per image, a panel per answer."""
    figure, axes = panels(len(truths), len(logits), 1, 0.4 + 1.8 * len(truths), sharex=True, sharey=True)
    turned = len(classes) > 10 or max(map(len, classes)) > 2
    for line, (name, answers) in zip(axes.T, logits.items(), strict=True):
        for axis, answer, own, image in zip(line, answers, truths, titles, strict=True):
            axis.bar(range(len(classes)), answer.softmax(0).tolist())[own].set_color("C3")
            axis.set_title(f"{image}, {name}", fontsize=8)
        line[-1].set_xticks(range(len(classes)), classes, rotation=90 if turned else 0, fontsize=7)
        line[-1].set_xlabel("class")
    for axis in axes[:, 0]:
        axis.set_ylabel("probability")
    return finished(figure)
