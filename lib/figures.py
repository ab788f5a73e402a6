"""Plots in one style, saved as png and pdf that are byte-stable for equal results."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from lib.experiment import Result
from lib.meter import KEYS
from lib.render import Comparison
from lib.report import told_picks
from lib.store import said_plainly
from lib.table import Table

WIDTH = 7.0  # inches: a text column
LINES = ("-", "--", ":", "-.")
AXES = {
    "batch": "images in the batch",
    "steps": "attack steps",
    "width": "network's width",
    "side": "image side, pixels",
}


def use_style() -> None:
    """seaborn's ticks at paper size, one palette."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind")


def save(figure: Figure, name: str, outputs: Path) -> list[Path]:
    """Write the figure under outputs/figures as png and pdf."""
    folder = outputs / "figures"
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    with said_plainly(outputs):
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, dpi=200, bbox_inches="tight", metadata={"Software": None})
        figure.savefig(pdf, bbox_inches="tight", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return [png, pdf]


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
        if result.row == "teacher" and result.student == teacher:
            found = {a.column.name: a.percent for a in result.accuracies}
            axis.plot(found["Clean"], found[robust], "*", ms=10, color="grey", alpha=0.5, label="the teacher")


def _reported_panel(axis: Axes, frame: pd.DataFrame, robust: str, looks: dict[str, dict[str, Any]]) -> None:
    clean, hard = (frame[frame.column == name].set_index("row").reported for name in ("Clean", robust))
    for row, look in looks.items():
        if row in clean.index:
            axis.plot(clean[row], hard[row], ls="", ms=5, alpha=0.4, **look)


def adversarial_grid(net: nn.Module, x: Tensor, x_adv: Tensor, classes: tuple[str, ...], epsilon: float) -> Figure:
    """Clean image, perturbation (grey is zero, the ends are +-epsilon) and adversarial image, with predictions.

    Shapes: x and x_adv (N, C, H, W) in [0, 1]. The caption gives the measured max|x' - x| in 1/255.
    """
    use_style()
    with torch.no_grad():
        beliefs = [net(images).softmax(1).max(1) for images in (x, x_adv)]
    figure, axes = plt.subplots(3, len(x), figsize=(WIDTH, 3.4), squeeze=False)
    for i in range(len(x)):
        pictures = (x[i], 0.5 + (x_adv[i] - x[i]) / (2 * epsilon), x_adv[i])
        for axis, picture in zip(axes[:, i], pictures, strict=True):
            axis.imshow(picture.permute(1, 2, 0).clamp(0, 1).cpu().squeeze(-1), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([]), axis.set_yticks([])
        for axis, (p, label) in zip(axes[[0, 2], i], beliefs, strict=True):
            axis.set_xlabel(f"{classes[int(label[i])]} ({float(p[i]):.2f})", fontsize=7)
    for axis, name in zip(axes[:, 0], ("clean", "x' - x", "adversarial"), strict=True):
        axis.set_ylabel(name)
    largest = float((x_adv - x).abs().max()) * 255
    figure.suptitle(f"max|x' - x| = {largest:.1f}/255, allowed {epsilon * 255:.1f}/255", fontsize=8)
    figure.tight_layout()
    return figure


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


def followed(curves: pd.DataFrame, groups: Mapping[str, list[str]], quantities: list[str]) -> Figure:
    """Epoch by epoch: a line of panels per group of runs, a panel per quantity, a curve per run.

    `curves` is what `report.followed` reads; `groups` is title -> runs. What is not told, or not run, is left out.
    Where the ten colours begin anew, the line is dashed, then dotted.
    """
    use_style()
    groups = {title: runs for title, runs in groups.items() if runs}
    runs_drawn = dict.fromkeys(run for runs in groups.values() for run in runs)
    looks = {run: {"color": f"C{i % 10}", "ls": LINES[i // 10 % len(LINES)]} for i, run in enumerate(runs_drawn)}
    shape = (len(groups), len(quantities))
    figure, axes = plt.subplots(*shape, figsize=(1.25 * WIDTH, 0.4 + 2.3 * shape[0]), squeeze=False, sharex=True)
    for (title, runs), line in zip(groups.items(), axes, strict=True):
        for axis, quantity in zip(line, quantities, strict=True):
            for run in runs:
                own = curves[curves.run == run].set_index("epoch")[quantity].dropna().astype(float)
                axis.plot(own.index, own, marker="o", ms=2, lw=1, label=run, **looks[run])
            axis.set(title=quantity, ylabel="labels right, %" if quantity == "label right" else "accuracy, %")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        line[-1].legend(title=title, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    figure.tight_layout()
    sns.despine(figure)
    return figure


def picks(histories: Mapping[str, Path], setting: str = "epsilon") -> Figure:
    """Per run the shares of the options picked in every epoch, the smallest at the bottom, and the mean reward below.

    Read from history.json; radii and step sizes in 1/255. A run without a reward leaves its lower panel empty; one
    that picks nothing from options is left out.
    """
    use_style()
    unit = 255 if setting in ("epsilon", "step_size") else 1
    told = told_picks(histories, setting)
    if not told:
        figure = plt.figure(figsize=(WIDTH, 0.5))
        figure.text(0.5, 0.5, f"no run here picks {setting} from options", ha="center", color="grey")
        return figure
    shares = {name: _shares([row["chosen"][setting] for row in rows], unit) for name, rows in told.items()}
    options = sorted(set().union(*shares.values()))
    colours = dict(zip(options, sns.color_palette("viridis", len(options)), strict=True))
    figure, axes = plt.subplots(
        2, len(told), figsize=(max(1.25 * WIDTH, 1.7 * len(told)), 4.2), sharex="col", squeeze=False
    )
    for (name, rows), (upper, lower) in zip(told.items(), axes.T, strict=True):
        below = shares[name].cumsum(axis=1) - shares[name]
        for option, share in shares[name].items():
            upper.bar(share.index, share, width=1.0, bottom=below[option], color=colours[option], lw=0)
        upper.set(title=name, ylim=(0, 1), xlim=(0.5, len(rows) + 0.5))
        _rewards(lower, [row["reward"] for row in rows])
    axes[0][0].set_ylabel("share of the draws")
    axes[1][0].set_ylabel("mean reward")
    handles = [Patch(color=colours[option], label=f"{option:g}") for option in reversed(options)]
    title = f"{setting}, in 1/255" if unit > 1 else setting
    figure.legend(handles=handles, title=title, loc="center left", bbox_to_anchor=(1.0, 0.6), frameon=False, fontsize=7)
    figure.tight_layout()
    sns.despine(figure)
    return figure


def _shares(counts: list[dict[str, int]], unit: int) -> pd.DataFrame:
    """One line per epoch from 1 on, one column per option in ascending order; a line adds up to 1."""
    frame = pd.DataFrame([{round(unit * float(v), 1): n for v, n in one.items()} for one in counts])
    frame = frame.sort_index(axis=1).set_axis(range(1, len(counts) + 1))
    return frame.div(frame.sum(axis=1), axis=0)


def _rewards(axis: Axes, rewards: list[float | None]) -> None:
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    known = [(epoch, reward) for epoch, reward in enumerate(rewards, 1) if reward is not None]
    if known:
        axis.plot(*zip(*known, strict=True), "o-", ms=3, lw=1, color="C3")
    else:
        axis.set_yticks([])
        axis.text(0.5, 0.5, "no reward", ha="center", transform=axis.transAxes, color="grey")


def policies(shares: Mapping[str, Mapping[str, Tensor]], options: Mapping[str, tuple[float, ...]]) -> Figure:
    """Each setting's probabilities under several policies, as bars side by side; the dotted line is the uniform one.

    `shares` is policy -> setting -> probabilities (options,), `options` is setting -> its values.
    """
    use_style()
    figure, axes = plt.subplots(1, len(options), figsize=(WIDTH, 2.4), squeeze=False)
    width = 0.8 / len(shares)
    for panel, (setting, values) in zip(axes[0], options.items(), strict=True):
        unit = 255 if setting in ("epsilon", "step_size") else 1
        for i, (policy, of) in enumerate(shares.items()):
            places = [place + (i - (len(shares) - 1) / 2) * width for place in range(len(values))]
            panel.bar(places, of[setting].tolist(), width, label=policy)
        panel.axhline(1 / len(values), color="grey", ls=":", lw=0.8)
        panel.set_xticks(range(len(values)), [f"{unit * value:.0f}" for value in values], fontsize=6)
        panel.set_xlabel(setting + (", in 1/255" if unit > 1 else ""))
    axes[0][0].set_ylabel("probability")
    figure.tight_layout()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    sns.despine(figure)
    return figure


def beliefs(
    logits: Mapping[str, Tensor], classes: tuple[str, ...], truth: int | Sequence[int], title: str | Sequence[str]
) -> Figure:
    """The softmax of some answers as bars, the true class in red: a line of panels per image, a panel per answer.

    Shapes: answers (N, C), with N true classes and N titles; or (C,), with one of each.
    """
    use_style()
    truths, titles = ([one] if isinstance(one, int | str) else [*one] for one in (truth, title))
    size, turned = (WIDTH, 0.4 + 1.8 * len(truths)), len(classes) > 10 or max(map(len, classes)) > 2
    figure, axes = plt.subplots(len(truths), len(logits), figsize=size, sharex=True, sharey=True, squeeze=False)
    for panels, (name, answers) in zip(axes.T, logits.items(), strict=True):
        for panel, answer, own, said in zip(panels, torch.atleast_2d(answers), truths, titles, strict=True):
            colours = ["C3" if i == own else "C0" for i in range(len(classes))]
            panel.bar(range(len(classes)), answer.softmax(0).tolist(), color=colours)
            panel.set_title(f"{said}, {name}", fontsize=8)
        panels[-1].set_xticks(range(len(classes)), classes, rotation=90 if turned else 0, fontsize=7)
        panels[-1].set_xlabel("class")
    for panel in axes[:, 0]:
        panel.set_ylabel("probability")
    figure.tight_layout()
    sns.despine(figure)
    return figure


def history(path: Path) -> Figure:
    """A run's terms and its PGD-10 accuracy on the selection images, per epoch, from its history.json."""
    use_style()
    frame = pd.read_json(path).set_index("epoch")
    figure, (terms, score) = plt.subplots(1, 2, figsize=(WIDTH, 2.6))
    frame.drop(columns=["step", "score", "strategy", "followed", *KEYS], errors="ignore").plot(
        ax=terms, lw=1, xlabel="epoch", ylabel="mean of the term"
    )
    frame["score"].plot(ax=score, lw=1, color="C3", xlabel="epoch", ylabel="PGD-10 accuracy, %")
    figure.tight_layout()
    sns.despine(figure)
    return figure


def curves(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], x_label: str) -> Figure:
    """A panel per key, in it a line per network: (x, accuracy in %)."""
    use_style()
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.8), squeeze=False, sharey=True)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for i, (name, (x, y)) in enumerate(lines.items()):
            axis.plot(x, y, label=name, marker="o", markersize=3, linestyle=("-", "--", ":", "-.")[i % 4])
        axis.set(title=title, xlabel=x_label, ylim=(-3, 103))
    axes[0][0].set_ylabel("accuracy, %")
    axes[0][0].legend(fontsize=7)
    sns.despine(figure)
    figure.tight_layout()
    return figure


def surfaces(losses: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """The loss around one image, per network: offsets (P,) in [0, 1] along the gradient's sign and a random sign."""
    use_style()
    size = (1.6 * WIDTH, 3.6)
    figure, axes = plt.subplots(1, len(losses), figsize=size, squeeze=False, subplot_kw={"projection": "3d"})
    for axis, (name, (offsets, loss)) in zip(axes[0], losses.items(), strict=True):
        along, across = torch.meshgrid(255 * offsets.cpu(), 255 * offsets.cpu(), indexing="ij")
        axis.plot_surface(along.numpy(), across.numpy(), loss.cpu().numpy(), cmap="viridis", linewidth=0)
        axis.set_title(name, fontsize=8)
        axis.set_xlabel("gradient's sign, 1/255", fontsize=7)
        axis.set_ylabel("random sign, 1/255", fontsize=7)
        axis.set_zlabel("loss", fontsize=7)
        axis.tick_params(labelsize=6)
    figure.subplots_adjust(left=0.0, right=0.95, wspace=0.15)
    return figure


def cost_curves(curves: pd.DataFrame) -> Figure:
    """Seconds of one attack as its batch, steps, width and image side grow, a curve per form; both axes logarithmic.

    `curves` is what `speed.curves` returns. The dotted line is proportional growth from our first point.
    """
    use_style()
    names = list(dict.fromkeys(curves["axis"]))
    figure, axes = plt.subplots(1, len(names), figsize=(1.25 * WIDTH, 2.4), squeeze=False)
    for name, axis in zip(names, axes[0], strict=True):
        for form, line in curves[curves["axis"] == name].groupby("form", sort=False):
            axis.plot(line.value, line.seconds, "o-", ms=3, lw=1, label=form)
        own = curves[(curves["axis"] == name) & (curves.form == "ours")]
        axis.plot(
            own.value, own.seconds.iloc[0] * own.value / own.value.iloc[0], ":", color="grey", label="proportional"
        )
        axis.set(xscale="log", yscale="log", xlabel=AXES[name], xticks=own.value)
        axis.set_xticks([], minor=True), axis.set_xticklabels(own.value)
        axis.yaxis.set_major_formatter("{x:g}"), axis.yaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="y", which="both", labelsize=6)
    axes[0][0].set_ylabel("seconds")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=7)
    figure.tight_layout()
    sns.despine(figure)
    return figure
