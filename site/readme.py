"""Draw README's picture from the kept evidence, and write its numbers into README's table."""

import re

import pandas as pd

from lib import ROOT, experiment, report
from lib.experiment.reference import REFERENCE
from lib.report import figures
from lib.report.render import Comparison

PICTURE = REFERENCE / "small" / "compare_papers_cifar10_jpeg.png"
README = ROOT / "README.md"
BLOCK = {"students": ["ResNet18"], "teachers": ["WideResNet-34-10"]}
COLUMNS = ("Clean", "PGD", "AA")


def table() -> str:
    """DGAD's Table 4, its ResNet-18 block: reported, kept, and the strongest attack on AutoAttack's own images."""
    block = experiment.open_table("table4_dgad", experiment.Parameters(device="cpu", **BLOCK))
    comparison, cells = report.reported_and_kept(block), dict[str, dict[str, str]]()
    for record in comparison.frame[comparison.frame["column"].isin(COLUMNS)].to_dict("records"):
        row, name = cells.setdefault(record["row"], {}), record["column"]
        row |= {f"{name} reported": f"{record['reported']:.2f}", f"{name} kept": kept(record)}
    for record in comparison.beside.to_dict("records"):
        cells[record["row"]][f"{record['column']}, kept"] = kept(record)
    frame = pd.DataFrame(cells).T.rename_axis("row")
    return str(frame.fillna("–").to_markdown(disable_numparse=True))


def kept(record: dict[str, object]) -> str:
    """A kept accuracy with its interval."""
    known = pd.notna(record["kept"])
    return "{kept:.1f} [{kept_low:.1f}, {kept_high:.1f}]".format(**record) if known else "–"


def text() -> str:
    """README with the numbers of what is kept."""
    return re.sub(r"(^\|.*\n)+", lambda _: table() + "\n", README.read_text(), count=1, flags=re.MULTILINE)


def drawn() -> Comparison:
    """What the picture shows: all that is kept under one protocol."""
    return report.reported_and_kept(experiment.open_table("compare_papers", experiment.Parameters(device="cpu")))


def rows(comparison: Comparison) -> str:
    """The rows that have something kept, by name, which the picture's file says as well."""
    return ", ".join(comparison.frame.dropna(subset="kept")["row"].unique())


if __name__ == "__main__":
    figure = figures.kept(drawn(), robust="AA")
    facts = {"Software": None, "Description": rows(drawn())}
    figure.savefig(PICTURE, dpi=150, bbox_inches="tight", metadata=facts)
    README.write_text(text())
    print(f"{PICTURE.name}, {README.name}")
