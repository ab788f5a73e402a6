"""Write the site's sources to outputs/site_source: a page per notebook, the result first, and an index of cards."""

import json
import re
import shutil
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from lib import ROOT, experiment, report
from lib.experiment.parameters import PARAMS, read_yaml
from lib.methods import METHODS

OUTPUTS = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "outputs").resolve()
SOURCE, FILES = OUTPUTS / "site_source", OUTPUTS / "site_source" / "files"
PAPERS = {"las_at": "LAS-AT", "dgad": "DGAD", "dynat": "DYNAT", "d2r": "D2R", "": "all four"}
INTRODUCTION = """# Four papers on adversarial training, table by table

LAS-AT, DGAD, DYNAT and D2R: {items} tables and figures, each with what the paper reports, what is kept of earlier runs,
what was measured here, and the notebook that makes it. {run} of {pages} notebooks were run for these pages.

```{{raw}} html
<form id="filters" onsubmit="return false" aria-label="Which pages are shown">
"""


def page(notebook: Path) -> dict[str, Any]:
    """Write one page, and return what its card shows."""
    name, executed, made = notebook.stem, OUTPUTS / "executed" / notebook.name, OUTPUTS / f"tables/{notebook.stem}.json"
    copy = nbformat.read(executed if executed.exists() else notebook, as_version=4)
    title, _, rest = copy.cells[0].source.removeprefix("# ").partition("\n")
    facts = json.loads(made.read_text()) if made.exists() else {}
    status = f"run here, scale {facts['provenance']['scale']}" if facts else "run here" * executed.exists()
    card = {"name": "overview" if name == "index" else name, "title": title, "methods": [], "status": status}
    card["paper"] = next(shown for key, shown in PAPERS.items() if name.endswith(key))
    nbformat.write(copy, FILES / notebook.name)
    first = [f"# {title}", "" if status else f"**Not run here.** `make {name}` runs it."]
    if (PARAMS / "tables" / f"{name}.yaml").exists():
        first += result(name, title, facts, card)
    files = {f.name[len(name) + 1 :].replace(".", " "): f.name for f in sorted(FILES.glob(f"{name}[._]*"))}
    downloads = " · ".join(f"{{download}}`{kind} <files/{file}>`" for kind, file in files.items())
    first += [made_by(facts, copy) if status else "", f"Download: {downloads}"]
    for number, cell in enumerate(copy.cells):
        cell.source = cell.source.replace("(index.", "(overview.").replace("(../CONTRIBUTING", "(contributing")
        tags = cell.metadata.setdefault("tags", [])
        tags += ["hide-input"] if card["methods"] or "parameters" in " ".join(tags) else []
        images = [out.data["image/png"] for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
        if images:
            before = [one.source for one in copy.cells[:number] if one.cell_type == "markdown"][-1]
            sentence = re.sub(r"[#*`$\s]+", " ", re.split(r"(?<=[.:])\s", before.rpartition("\n\n")[2])[0])
            cell.metadata["mystnb"] = {"image": {"alt": f"{title}. {sentence}"}}
            if not card["methods"]:
                thumbnail(BytesIO(b64decode(images[0])), pd.DataFrame(), SOURCE / "thumbnails" / f"{name}.png")
    first += ["## The notebook" if card["methods"] else "", rest]
    copy.cells[0] = nbformat.v4.new_markdown_cell("\n\n".join(filter(None, first)))
    nbformat.write(copy, SOURCE / f"{card['name']}.ipynb")
    return card


def result(name: str, title: str, facts: dict[str, Any], card: dict[str, Any]) -> list[str]:
    """The picture, the table, and the claims with their verdicts; the thumbnail and the methods go to the card."""
    table = experiment.open_table(name, experiment.Parameters())
    card["methods"] = sorted({METHODS[row.method].title.split(" (")[0] for row in table.rows})
    if not facts:
        saved = report.save(report.compare(table, []), SOURCE)  # the reported numbers and the kept ones
        facts = json.loads((SOURCE / "tables" / f"{name}.json").read_text())
        for file in saved:
            shutil.copy(file, FILES) if file.suffix in (".csv", ".tex") else None
    cells = pd.DataFrame(facts["cells"])
    drawn, html = FILES / f"{name}.png", FILES / f"{name}.html"
    thumbnail(drawn if drawn.exists() else None, cells, SOURCE / "thumbnails" / f"{name}.png")
    picture = [f"![{title}: {table.file.title}](files/{drawn.name})"] if drawn.exists() else []
    text = html.read_text() if html.exists() else report.reported_and_kept(table).to_html()
    shown = [f'```{{raw}} html\n<div class="result">\n{text}\n</div>\n```']
    verdicts = VERDICTS if name == "compare_papers" else VERDICTS[VERDICTS["table"] == name]
    verdicts = (
        verdicts.drop(columns=["paper", "table"])
        .dropna(axis=1, how="all")
        .round({"lead": 2, "±": 2})
        .astype(object)
        .fillna("–")
    )
    claims = ["## Claims, and the verdict of the kept evidence", verdicts.to_markdown(index=False)]
    return (picture + shown if name.startswith("fig") else shown + picture) + claims * bool(len(verdicts))


def made_by(facts: dict[str, Any], copy: Any) -> str:
    """When a page's numbers were made, by what and where."""
    made, date = facts.get("provenance", {}), copy.metadata.get("papermill", {}).get("end_time", "")[:10]
    parts = [f"on {date}" if date else "", f"by commit {', '.join(made['commit'])}" if made.get("commit") else ""]
    parts += ["with uncommitted changes" if "True" in made.get("uncommitted_changes", []) else ""]
    parts += [f"{len(made['runs'])} runs ({', '.join(made['runs'][:3])} …)" if made.get("runs") else ""]
    return f"*Made {', '.join(filter(None, parts + made.get('device', [])))}.*"


def thumbnail(drawn: Any, cells: pd.DataFrame, to: Path) -> None:
    """A small copy of a picture, or the numbers of the last column that has some, a line per row."""
    if drawn:
        ImageOps.pad(Image.open(drawn).convert("RGB"), (480, 360), color="white").save(to)
        return
    known = cells.dropna(subset=["reported", "kept", "measured"], how="all")
    if not known.empty:
        block = known[known["column"] == known["column"].iloc[-1]].drop_duplicates("row").head(12)
        figure = Figure(figsize=(4.8, 3.6), layout="constrained")
        axis = figure.subplots()
        for kind, look in {"reported": "o", "kept": "s", "measured": "D"}.items():
            if block[kind].notna().any():
                axis.plot(block[kind].astype(float), block["row"].str.slice(0, 24), look, label=kind)
        axis.set(xlabel=f"{block['column'].iloc[0]}, %", ylim=(len(block) - 0.5, -0.5))
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        figure.savefig(to)


def index(cards: list[dict[str, Any]]) -> str:
    """The first page: what the site is, the filters, a card per page, and the table of contents."""
    groups = {shown: [c for c in cards if c["methods"] and c["paper"] == shown] for shown in PAPERS.values()}
    groups["Walk-throughs and tools"] = [card for card in cards if not card["methods"]]
    run, methods = sum(bool(c["status"]) for c in cards), sorted({m for c in cards for m in c["methods"]})
    text = INTRODUCTION.format(
        items=sum(bool(c["methods"]) and c["paper"] != PAPERS[""] for c in cards), pages=len(cards), run=run
    )
    for label, values in {"paper": PAPERS.values(), "method": methods}.items():
        options = "".join(f"<option>{value}</option>" for value in values)
        options = f'<option value="">all</option>{options}'
        text += f'<label>{label} <select data-filter="{label}">{options}</select></label>\n'
    text += '<label>words <input type="search" data-filter="words" placeholder="CIFAR-100"></label>\n</form>\n'
    text += '<p id="none" hidden>No page has all of these.</p>\n```\n\n::::{grid} 1 2 3 3\n:padding: 0\n'
    for card in (card for group in groups.values() for card in group):
        image = f"thumbnails/{card['name']}.png"
        kinds = "|".join([f"paper={card['paper']}", *(f"method={method}" for method in card["methods"])])
        text += f":::{{grid-item-card}} {card['title']}\n:link: {card['name']}\n:link-type: doc\n"
        text += f":img-top: {image}\n:img-alt: {card['title']}, small\n" if (SOURCE / image).exists() else ""
        text += f'{card["status"] or "not run here"}<span hidden data-kinds="{kinds}"></span>\n:::\n'
    trees = ["\n".join([f":caption: {name}", *(c["name"] for c in group)]) for name, group in groups.items()]
    return "\n".join([text, "::::", *(f"```{{toctree}}\n:hidden:\n{tree}\n```" for tree in trees)])


if __name__ == "__main__":
    shutil.rmtree(SOURCE, ignore_errors=True)
    (SOURCE / "thumbnails").mkdir(parents=True)
    for kind in ("tables", "figures"):
        (OUTPUTS / kind).mkdir(exist_ok=True)
        shutil.copytree(OUTPUTS / kind, FILES, dirs_exist_ok=True)
    common = experiment.open_table("compare_papers", experiment.Parameters())
    VERDICTS = report.verdicts(report.kept_results(common))
    claims = {one["claim"]: one.get("table") for one in read_yaml(PARAMS / "claims.yaml")["claims"]}
    VERDICTS["table"] = VERDICTS["claim"].map(claims)
    guide = (ROOT / "CONTRIBUTING.md").read_text().replace("(notebooks/", "(").replace("(index.", "(overview.")
    (SOURCE / "contributing.md").write_text(f"---\norphan: true\n---\n{guide}")
    (SOURCE / "index.md").write_text(index([page(one) for one in sorted((ROOT / "notebooks").glob("*.ipynb"))]))
