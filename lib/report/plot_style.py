"""One style for all figures, saved as png and pdf that are byte-stable for equal results."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.files import disk_errors

WIDTH = 7.0  # inches: a text column
DASHES: tuple[Any, ...] = ("", (4, 2), (1, 1.5))
BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False, "fontsize": 7}
ABOVE: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False}


def panels(rows: int, columns: int, width: float, height: float, **shared: Any) -> tuple[Figure, np.ndarray]:
    """A figure of rows x columns axes, width in text columns and height in inches; seaborn's ticks, one palette."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    return plt.subplots(rows, columns, figsize=(WIDTH * width, height), squeeze=False, **shared)


def finished(figure: Figure) -> Figure:
    """The figure without overlaps and without the upper and right spines."""
    figure.tight_layout()
    sns.despine(figure)
    return figure


def intervals(cells: pd.DataFrame | pd.Series) -> np.ndarray:
    """How far the 95 % Wilson intervals reach below and above measured numbers, or NaN: (2,) of a cell, (2, N) of N."""
    low, measured, high = (np.array(cells[name], dtype=float) for name in ("low", "measured", "high"))
    return np.array([measured - low, high - measured])


def save(figure: Figure, name: str, outputs: Path) -> list[Path]:
    """Write the figure under outputs/figures as png and pdf."""
    png, pdf = (outputs / "figures" / f"{name}.{suffix}" for suffix in ("png", "pdf"))
    with disk_errors(outputs):
        png.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, dpi=200, bbox_inches="tight", metadata={"Software": None})
        figure.savefig(pdf, bbox_inches="tight", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return [png, pdf]
