"""What a report begins with, as one picture: accuracy under each attack, accuracy against radius, and examples."""

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

from lib.attacks.pgd import pgd
from lib.attacks.watched import Watched
from lib.evaluate.attacks import objective_of
from lib.evaluate.sanity import Evidence
from lib.evaluate.significance import Accuracy
from lib.losses import cross_entropy

RADII = (0.0, 0.5, 1.0, 1.5, 2.0)  # of the report's, that the curve has
CURVE_IMAGES, EXAMPLES = 64, 4


def picture(net: nn.Module, x: Tensor, y: Tensor, epsilon: float, accuracies: Sequence[Accuracy], seed: int) -> bytes:
    """PNG: bars with 95 % Wilson intervals, PGD-20 over the radius, and some images before and after PGD-20."""
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    parts: Any = figure.subfigures(1, 3, width_ratios=(1.3, 1, 1.4))
    bars, curve, right = parts
    _bars(bars.subplots(), accuracies)
    radii = [min(factor * epsilon, 1.0) for factor in RADII]
    few = (x[:CURVE_IMAGES], y[:CURVE_IMAGES])
    percents = [Evidence(net, *few, radius, seed=seed).attacked(net) for radius in radii]
    axis = curve.subplots()
    axis.plot([255 * radius for radius in radii], percents, "o-", ms=3)
    axis.axvline(255 * epsilon, color="grey", ls=":")
    axis.set(xlabel="radius, 1/255", ylabel="%", ylim=(0, 102))
    axis.set_title(f"PGD-20, the first {len(few[1])} images", fontsize=8)
    _examples(right.subplots(2, EXAMPLES, squeeze=False), net, x[:EXAMPLES], y[:EXAMPLES], epsilon, seed)
    right.suptitle("before and after PGD-20: label, answer", fontsize=8)
    file = BytesIO()
    figure.savefig(file, dpi=110, metadata={"Software": None})
    return file.getvalue()


def as_html(png: bytes) -> str:
    """An image element that holds the picture itself."""
    data = f"data:image/png;base64,{b64encode(png).decode()}"
    return f'<img alt="accuracy by attack and by radius, and examples" src="{data}">'


def _bars(axis: Axes, accuracies: Sequence[Accuracy]) -> None:
    percents, places = np.array([a.percent for a in accuracies]), np.arange(len(accuracies))
    low, high = np.array([a.interval for a in accuracies]).T
    axis.barh(places, percents, xerr=np.maximum(0, [percents - low, high - percents]), color="C0", ecolor="grey")
    axis.set_yticks(places, [f"{a.column.name} ({a.n})" for a in accuracies], fontsize=7)
    axis.set(xlim=(0, 102), xlabel="%")
    axis.set_title("right under each attack (images), 95 %", fontsize=8)
    axis.invert_yaxis()


def _examples(axes: np.ndarray, net: nn.Module, x: Tensor, y: Tensor, epsilon: float, seed: int) -> None:
    generator = Generator(x.device).manual_seed(seed)
    objective = objective_of(Watched(net, x), cross_entropy, y)
    x_adv = pgd(objective, x, epsilon=epsilon, step_size=epsilon / 4, steps=20, generator=generator)
    for row, images in zip(axes, (x, x_adv), strict=True):
        with torch.no_grad():
            found = net(images).argmax(1).tolist()
        for axis, image, label, answer in zip(row, images.cpu(), y.tolist(), found, strict=False):
            shown = image if image.shape[0] == 3 else image.mean(0, keepdim=True).expand(3, -1, -1)
            axis.imshow(shown.permute(1, 2, 0).numpy(), vmin=0, vmax=1)
            axis.set_title(f"{label}, {answer}", fontsize=7, color="black" if label == answer else "C3")
    for axis in axes.flat:
        axis.axis("off")
