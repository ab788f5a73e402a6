"""What a notebook shows besides numbers: code as it runs, where runs lie, what a result was made with."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown
from pandas.io.formats.style import Styler

from lib.evaluate import Finding, strip
from lib.experiment.spec import RunSpec
from lib.experiment.table import Table, show_path
from lib.report.render import Comparison


def sanity_strip(findings: Mapping[str, Sequence[Finding]], contradictions: Mapping[str, Sequence[str]]) -> HTML:
    """The sanity checks of some networks as their coloured strip."""
    return HTML(strip(findings, contradictions))


def histories(table: Table) -> dict[str, Path]:
    """Where the history.json of every row's training lies, the seed in the name where there are several.

    Given weights have none.
    """
    several = len({cell.seed for cell in table.cells}) > 1
    folders = {
        cell.row.row + (f", seed {cell.seed}" if several else ""): table.workspace.store.folder(cell.network.digest)
        for cell in table.cells
        if isinstance(cell.network, RunSpec)
    }
    return {label: folder / "history.json" for label, folder in folders.items()}


def source(*functions: Any) -> Markdown:
    """The source of some functions of the library, so that what is read is what runs."""
    code = "\n\n".join(dedent(inspect.getsource(function)).strip() for function in functions)
    return Markdown(f"```python\n{code}\n```")


def provenance_table(comparison: Comparison, saved: list[Path]) -> Styler:
    """What a result was made with, and where it was written, for the end of a notebook."""
    facts = {k: v for k, v in comparison.provenance.items() if k not in ("settings", "runs")}
    facts = {k: "; ".join(v) if isinstance(v, list) else v for k, v in facts.items()}
    facts = {k: v for k, v in facts.items() if v not in ("None", {}, "")}
    facts |= {"runs": f"{len(comparison.provenance['runs'])} digests", "written": ", ".join(map(show_path, saved))}
    return pd.DataFrame({"": facts.values()}, index=list(facts)).style.set_properties(**{"text-align": "left"})
