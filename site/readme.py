"""Draw README's picture from the kept evidence, and write its table and verdict into README."""

import re
from typing import Any

import pandas as pd

from lib import ROOT, experiment, report
from lib.experiment.parameters import PARAMS, read_yaml
from lib.experiment.reference import REFERENCE, index
from lib.report import figures
from lib.report.render import Comparison
from lib.report.verdicts import in_words, printed_lead

SMALL = REFERENCE / "small"
PICTURE = SMALL / f"compare_papers_{'_'.join(index(SMALL)['data'])}.png"
README = ROOT / "README.md"
BLOCK = {"students": ["ResNet18"], "teachers": ["WideResNet-34-10"]}
COLUMNS = ("Clean", "PGD", "AA")


def shown() -> str:
    """DGAD's Table 4, its ResNet-18 block: reported, kept, the strongest attack on AutoAttack's images; the verdict."""
    block = experiment.open_table("table4_dgad", experiment.Parameters(device="cpu", **BLOCK))
    comparison, cells = report.reported_and_kept(block), dict[str, dict[str, str]]()
    for record in comparison.frame[comparison.frame["column"].isin(COLUMNS)].to_dict("records"):
        row, name = cells.setdefault(record["row"], {}), record["column"]
        row |= {f"{name} reported": f"{record['reported']:.2f}", f"{name} kept": kept(record)}
    same = comparison.beside["kept_n"] == comparison.frame.loc[comparison.frame["column"] == "AA", "kept_n"].max()
    for record in comparison.beside[same].to_dict("records"):
        cells[record["row"]][f"{record['column']}, kept"] = kept(record)
    table = pd.DataFrame(cells).T.rename_axis("row").fillna("–").to_markdown(disable_numparse=True)
    pair = read_yaml(PARAMS / "claims.yaml")["items"]["table4_dgad"]
    better, than = pair["better"], pair["than"]
    leads = ", ".join(f"{column} {printed_lead('table4_dgad', (better, than), column):+.2f}" for column in COLUMNS)
    verdict = in_words(report.kept_results(block), better, than, COLUMNS)
    return f"{table}\n\n**{better} over {than}**, reported: {leads}. **Kept**: {verdict}.\n"


def kept(record: dict[str, Any]) -> str:
    """A kept accuracy with half the width of its interval."""
    half = (record["kept_high"] - record["kept_low"]) / 2
    return "–" if pd.isna(record["kept"]) else f"{record['kept']:.1f} ±{half:.1f}"


def text() -> str:
    """README with the numbers of what is kept."""
    before, after = re.split(r"(?:^\|.*\n)+\n.*\*\*Kept\*\*: .*\n", README.read_text(), flags=re.MULTILINE)
    return before + shown() + after


def drawn() -> Comparison:
    """What the picture shows: all that is kept under one protocol."""
    return report.reported_and_kept(experiment.open_table("compare_papers", experiment.Parameters(device="cpu")))


def rows(comparison: Comparison) -> str:
    """The rows that have something kept, by name, which the picture's file says as well."""
    return ", ".join(comparison.frame.dropna(subset="kept")["row"].unique())


if __name__ == "__main__":
    comparison = drawn()
    figure = figures.kept(comparison, robust="AA")
    facts = {"Software": None, "Description": rows(comparison)}
    figure.savefig(PICTURE, dpi=150, bbox_inches="tight", metadata=facts)
    README.write_text(text())
    print(f"{PICTURE.name}, {README.name}")
