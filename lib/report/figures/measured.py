"""Curves and surfaces of what was measured along an axis: radii, steps, directions, sizes."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lib.report.figures.style import WIDTH, use_style

AXES = {
    "batch": "images in the batch",
    "steps": "attack steps",
    "width": "network's width",
    "side": "image side, pixels",
}


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
