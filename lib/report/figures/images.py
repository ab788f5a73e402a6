"""Images, what was done to them, and what networks say of them."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lib.report.figures.style import WIDTH, use_style


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
