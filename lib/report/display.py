"""What a notebook displays besides numbers: code as it runs, and what a result was made with."""

import inspect
from pathlib import Path
from textwrap import dedent
from typing import Any

import pandas as pd
from IPython.display import Markdown
from pandas.io.formats.style import Styler

from lib.experiment.table import show_path
from lib.report.render import Comparison


def source(*functions: Any) -> Markdown:
    """The source of some functions of the library, so that what is read is what runs."""
    code = "\n\n".join(dedent(inspect.getsource(function)).strip() for function in functions)
    return Markdown(f"```python\n{code}\n```")


def provenance_table(comparison: Comparison, saved: list[Path]) -> Styler:
    """What a result was made with, and where it was written, for the end of a notebook."""
    facts = {key: value for key, value in comparison.provenance.items() if key not in ("settings", "runs")}
    facts = {key: "; ".join(value) if isinstance(value, list) else value for key, value in facts.items()}
    facts = {key: value for key, value in facts.items() if value not in ("None", {}, "")}
    facts |= {"runs": f"{len(comparison.provenance['runs'])} digests", "written": ", ".join(map(show_path, saved))}
    return pd.DataFrame({"": facts.values()}, index=list(facts)).style.set_properties(**{"text-align": "left"})
