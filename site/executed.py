"""Execute the notebooks of params/evidence.yaml over the rows that are complete here; each as HTML beside the evidence.

Nothing is trained but an undefended control that is missing; sanity checks and last epochs that a notebook asks for
are made. The page is one file without scripts, its equations are MathML, and it needs no network.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from conf import mathml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from papermill import execute_notebook

from lib import ROOT, experiment
from lib.errors import UserError
from lib.experiment.parameters import PARAMS, read_yaml
from lib.experiment.reference import REFERENCE, index


class Equations(IPythonRenderer):
    """Markdown whose equations become MathML."""

    def inline_math(self, body: str) -> str:
        """An equation in a line."""
        return mathml(body, "inline")

    def block_math(self, body: str) -> str:
        """An equation of its own."""
        return mathml(body, "block")


def as_html(notebook: Path) -> str:
    """An executed notebook as one page."""
    filters = {"markdown2html": lambda text: MarkdownWithMath(renderer=Equations(escape=False)).render(text)}
    page, _ = HTMLExporter(filters=filters).from_filename(str(notebook))
    return re.sub(r"<script.*?</script>\s*", "", page, flags=re.DOTALL)


def listed() -> dict[str, dict[str, Any]]:
    """Table -> its rows, students and teachers in params/evidence.yaml; second seeds aside."""
    tables = dict[str, dict[str, Any]]()
    for entry in (one for one in read_yaml(PARAMS / "evidence.yaml")["runs"] if "seeds" not in one):
        own = tables.setdefault(entry["table"], {"rows": []})
        own |= {key: entry[key] for key in ("students", "teachers") if key in entry}
        own["rows"] += entry["rows"]
    return tables


def complete(name: str, given: dict[str, Any]) -> list[str]:
    """The rows of a table that are trained and measured here."""
    table = experiment.open_table(name, experiment.Parameters(**given))
    return [cell.row.row for cell in table.cells if cell.state(table.workspace) == "complete"]


def execute(name: str, given: dict[str, Any]) -> Path:
    """Execute a notebook into outputs/executed, as make does; returns the copy."""
    copy = ROOT / given["outputs"] / "executed" / f"{name}.ipynb"
    copy.parent.mkdir(parents=True, exist_ok=True)
    notebook = ROOT / "notebooks" / f"{name}.ipynb"
    execute_notebook(notebook, copy, given, engine_name="dynamic_at", progress_bar=False, cwd=ROOT)
    return copy


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make kept", description=__doc__)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--outputs", default="outputs")
    parser.add_argument("--scale", default="small")
    chosen = vars(parser.parse_args())
    folder = REFERENCE / chosen["scale"]
    facts = index(folder)
    for name, own in listed().items():
        given = chosen | own | {"settings": facts["settings"]}
        given["rows"] = complete(name, given)
        if not given["rows"]:
            print(f"{name}: no row is complete in {chosen['outputs']} (make evidence)")
            continue
        page = folder / f"{name}_{'_'.join(facts['data'])}.html"
        page.write_text(as_html(execute(name, given)))
        print(f"{page.name}: {', '.join(given['rows'])}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
