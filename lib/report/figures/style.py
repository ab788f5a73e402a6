"""One style for all figures, saved as png and pdf that are byte-stable for equal results."""

from pathlib import Path

import seaborn as sns
from matplotlib.figure import Figure

from lib.files import disk_errors

WIDTH = 7.0  # inches: a text column
LINES = ("-", "--", ":", "-.")


def use_style() -> None:
    """seaborn's ticks at paper size, one palette."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind")


def save(figure: Figure, name: str, outputs: Path) -> list[Path]:
    """Write the figure under outputs/figures as png and pdf."""
    folder = outputs / "figures"
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    with disk_errors(outputs):
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, dpi=200, bbox_inches="tight", metadata={"Software": None})
        figure.savefig(pdf, bbox_inches="tight", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return [png, pdf]
