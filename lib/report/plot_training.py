"""What happened while networks were trained: losses, accuracies, and what a strategy picked."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lib.methods.strategy import UNITS
from lib.report.histories import picks as shares_of_picks
from lib.report.plot_style import BESIDE, LINES, WIDTH, finished, panels
from lib.train.meter import KEYS


def count_epochs(axis: Axes) -> None:
    """Whole numbers along the x axis."""
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def history(path: Path) -> Figure:
    """A run's terms and its PGD-10 accuracy on the selection images, per epoch, from its history.json."""
    frame = pd.read_json(path).set_index("epoch")
    figure, axes = panels(1, 2, 1, 2.6)
    terms = frame.drop(columns=["step", "score", "strategy", "followed", *KEYS], errors="ignore")
    terms.plot(ax=axes[0, 0], lw=1, ylabel="mean of the term")
    frame["score"].plot(ax=axes[0, 1], lw=1, color="C3", ylabel="PGD-10 accuracy, %")
    return finished(figure)


def followed(curves: pd.DataFrame, groups: Mapping[str, list[str]], quantities: list[str]) -> Figure:
    """Epoch by epoch: a line of panels per group of runs, a panel per quantity, a curve per run.

    `curves` is what `report.followed` reads; `groups` is title -> runs. What is not known, or not run, is left out.
    Where the ten colours begin anew, the line is dashed, then dotted.
    """
    groups = {title: runs for title, runs in groups.items() if runs}
    names = dict.fromkeys(run for runs in groups.values() for run in runs)
    looks = {run: {"color": f"C{i % 10}", "ls": LINES[i // 10 % len(LINES)]} for i, run in enumerate(names)}
    figure, axes = panels(len(groups), len(quantities), 1.25, 0.4 + 2.3 * len(groups), sharex=True)
    for (title, runs), line in zip(groups.items(), axes, strict=True):
        for axis, quantity in zip(line, quantities, strict=True):
            for run in runs:
                own = curves[curves["run"] == run].set_index("epoch")[quantity].dropna().astype(float)
                axis.plot(own.index, own, marker="o", ms=2, lw=1, label=run, **looks[run])
            axis.set(title=quantity, ylabel="labels right, %" if quantity == "label right" else "accuracy, %")
        line[-1].legend(title=title, **BESIDE)
    for axis in axes[-1]:
        count_epochs(axis)
    return finished(figure)


def picks(histories: Mapping[str, Path], setting: str = "epsilon") -> Figure:
    """Per run the shares of the options picked in every epoch, the smallest at the bottom, and the mean reward below.

    Read from history.json; radii and step sizes in 1/255. A run without a reward leaves its lower panel empty; one
    that picks nothing from options is left out.
    """
    shares = shares_of_picks(histories, setting)
    if shares.empty:
        figure = plt.figure(figsize=(WIDTH, 0.5))
        figure.text(0.5, 0.5, f"no run here picks {setting} from options", ha="center", color="grey")
        return figure
    runs, options = dict(iter(shares.groupby("run", sort=False))), sorted(shares["option"].unique(), reverse=True)
    colours = dict(zip(options, sns.color_palette("viridis", len(options))[::-1], strict=True))
    figure, axes = panels(2, len(runs), max(1.25, 0.25 * len(runs)), 4.2, sharex="col")
    stacked = {"multiple": "stack", "discrete": True, "lw": 0, "alpha": 1, "legend": False}
    for (name, run), (upper, lower) in zip(runs.items(), axes.T, strict=True):
        look = {"hue": "option", "hue_order": options, "palette": colours}
        sns.histplot(run, x="epoch", weights="share", ax=upper, **look, **stacked)
        upper.set(title=name, ylabel="", ylim=(0, 1), xlim=(0.5, run["epoch"].max() + 0.5))
        rewards = run.drop_duplicates("epoch").set_index("epoch")["reward"].astype(float).dropna()
        lower.plot(rewards.index, rewards, "o-", ms=3, lw=1, color="C3")
        count_epochs(lower)
        if rewards.empty:
            lower.set_yticks([])
            lower.text(0.5, 0.5, "no reward", ha="center", transform=lower.transAxes, color="grey")
    axes[0, 0].set_ylabel("share of the draws")
    axes[1, 0].set_ylabel("mean reward")
    handles = [Patch(color=colour, label=f"{round(option, 1):g}") for option, colour in colours.items()]
    figure.legend(handles=handles, title=setting + (", in 1/255" if setting in UNITS else ""), **BESIDE)
    return finished(figure)


def policies(shares: Mapping[str, Mapping[str, Tensor]], options: Mapping[str, tuple[float, ...]]) -> Figure:
    """Each setting's probabilities under several policies, as bars side by side; the dotted line is the uniform one.

    `shares` is policy -> setting -> probabilities (options,), `options` is setting -> its values.
    """
    figure, axes = panels(1, len(options), 1, 2.4)
    for panel, (setting, values) in zip(axes[0], options.items(), strict=True):
        names = [f"{UNITS.get(setting, 1) * value:.0f}" for value in values]
        frame = pd.DataFrame({policy: own[setting].tolist() for policy, own in shares.items()}, index=names)
        label = setting + (", in 1/255" if setting in UNITS else "")
        frame.plot.bar(ax=panel, width=0.8, rot=0, legend=False, xlabel=label)
        panel.tick_params(axis="x", labelsize=6)
        panel.axhline(1 / len(values), color="grey", ls=":", lw=0.8)
    axes[0, 0].set_ylabel("probability")
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False}
    figure.legend(*axes[0, 0].get_legend_handles_labels(), **place)
    return finished(figure)
