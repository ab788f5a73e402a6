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

from lib.report import picks_per_epoch
from lib.report.figures.style import LINES, WIDTH, use_style
from lib.train.meter import KEYS


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
    told = picks_per_epoch(histories, setting)
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
