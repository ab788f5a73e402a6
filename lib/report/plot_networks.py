"""Images and what networks believe of them; curves and surfaces along radii, steps, directions and sizes."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lib.report.plot_style import BESIDE, LINES, finished, panels

AXES = {
    "batch": "images in the batch",
    "steps": "attack steps",
    "width": "network's width",
    "side": "image side, pixels",
}


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
    logits: Mapping[str, Tensor], classes: tuple[str, ...], truth: int | Sequence[int], title: str | Sequence[str]
) -> Figure:
    """The softmax of some answers as bars, the true class in red: a line of panels per image, a panel per answer.

    Shapes: answers (N, C), with N true classes and N titles; or (C,), with one of each.
    """
    truths, titles = ([one] if isinstance(one, int | str) else [*one] for one in (truth, title))
    figure, axes = panels(len(truths), len(logits), 1, 0.4 + 1.8 * len(truths), sharex=True, sharey=True)
    turned = len(classes) > 10 or max(map(len, classes)) > 2
    for line, (name, answers) in zip(axes.T, logits.items(), strict=True):
        for axis, answer, own, image in zip(line, torch.atleast_2d(answers), truths, titles, strict=True):
            axis.bar(range(len(classes)), answer.softmax(0).tolist())[own].set_color("C3")
            axis.set_title(f"{image}, {name}", fontsize=8)
        line[-1].set_xticks(range(len(classes)), classes, rotation=90 if turned else 0, fontsize=7)
        line[-1].set_xlabel("class")
    for axis in axes[:, 0]:
        axis.set_ylabel("probability")
    return finished(figure)


def curves(graphs: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], x_label: str) -> Figure:
    """A panel per key, in it a line per network: (x, accuracy in %)."""
    figure, axes = panels(1, len(graphs), 1, 2.8, sharey=True)
    for axis, (title, lines) in zip(axes[0], graphs.items(), strict=True):
        for i, (name, (x, y)) in enumerate(lines.items()):
            axis.plot(x, y, label=name, marker="o", markersize=3, linestyle=LINES[i % len(LINES)])
        axis.set(title=title, xlabel=x_label, ylim=(-3, 103))
    axes[0, 0].set_ylabel("accuracy, %")
    axes[0, 0].legend(fontsize=7)
    return finished(figure)


def surfaces(losses: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """The loss around one image, per network: offsets (P,) in [0, 1] along the gradient's sign and a random sign."""
    figure, axes = panels(1, len(losses), 1.6, 3.6, subplot_kw={"projection": "3d"})
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

    `curves` is what `benchmark.curves` returns. The dotted line is proportional growth from our first point.
    """
    axes_of = dict(iter(curves.groupby("axis", sort=False)))
    figure, axes = panels(1, len(axes_of), 1.25, 2.4)
    for axis, (name, frame) in zip(axes[0], axes_of.items(), strict=True):
        lines = frame.pivot_table("seconds", "value", "form", sort=False)
        lines["proportional"] = lines["ours"].iloc[0] * lines.index / lines.index[0]
        lines.drop(columns="proportional").plot(ax=axis, marker="o", ms=3, lw=1, legend=False)
        lines["proportional"].plot(ax=axis, ls=":", color="grey")
        axis.set(xscale="log", yscale="log", xlabel=AXES[name])
        axis.set_xticks(lines.index, lines.index), axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter("{x:g}"), axis.yaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="y", which="both", labelsize=6)
    axes[0, 0].set_ylabel("seconds")
    axes[0, -1].legend(**BESIDE)
    return finished(figure)
