"""What a notebook displays and saves: a comparison as a table, what it was made with, and code as it runs."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pandas as pd
from IPython.display import Markdown
from pandas.io.formats.style import Styler

from lib.evaluate import Finding, Report, strip, summary
from lib.experiment.table import show_path
from lib.files import disk_errors, write_atomically

KINDS = ("reported", "kept", "measured", "difference")
LINE = ["student", "teacher", "row"]  # what names a line of a table
MARKS = {  # format -> how it writes a number that is best or second in its column, or plain
    "html": {"best": "<b>{}</b>", "second": "<u>{}</u>", "difference": '<span style="color: #777">{}</span>'},
    "md": {"best": "**{}**", "second": "<u>{}</u>"},
    "tex": {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}"},
}
TEX = str.maketrans(
    {"†": r"$^\dagger$", "‡": r"$^\ddagger$", "§": r"\S{}", "¶": r"\P{}", "±": r"$\pm$", "–": "--"}
    | {character: "\\" + character for character in "%&_#"}
)
STYLES: list[Any] = [
    {"selector": "caption", "props": "text-align: left; caption-side: top; padding-bottom: 0.6em; max-width: 60em"},
    {"selector": "th, td", "props": "text-align: left; white-space: nowrap; font-size: 80%; padding: 2px 5px"},
    {"selector": "th.row_heading", "props": "vertical-align: top"},
]


@dataclass(frozen=True, repr=False)
class Comparison:
    """A table's numbers, one line per student, teacher, row and column, and the caption they are shown under.

    `flags` is one string per seed, a character per image; a mark is best, second or empty, within student, teacher and
    column. `beside` has every row's worst case, and the strongest attack on the images that columns with fewer take;
    `other_protocol` what was measured under another protocol.
    """

    name: str
    frame: pd.DataFrame
    headings: dict[str, str]
    caption: str
    provenance: dict[str, Any]
    beside: pd.DataFrame
    findings: dict[str, tuple[Finding, ...]]  # of the sanity checks, by network
    contradictions: dict[str, list[str]]  # what cannot be, by network
    other_protocol: pd.DataFrame

    def __repr__(self) -> str:
        wide = self.frame.pivot_table(index=LINE, columns="column", values="measured", sort=False).round(1)
        return "\n".join([self.caption, wide.to_string(), *summary(self.findings, self.contradictions)])

    def _repr_html_(self) -> str:
        """Best in bold, second underlined, intervals behind the measured numbers; the sanity checks below."""
        style = _wide(self, "html").style.set_caption(self.caption).set_table_styles(STYLES).set_uuid(self.name)
        return style.to_html() + strip(self.findings, self.contradictions)


def save(comparison: Comparison, outputs: Path) -> list[Path]:
    """Write the table as csv, md, tex, html and json under outputs/tables: equal results of equal code, equal bytes.

    What was measured under another protocol goes to a csv of its own, <name>_<protocol>.csv.
    """
    table = _flat(comparison, "md").to_markdown(index=False, disable_numparse=True)
    checks = summary(comparison.findings, comparison.contradictions)
    style = _flat(comparison, "tex").style.hide(axis="index").format_index(escape="latex", axis=1)
    style = style.format(escape="latex", subset=["student", "teacher", "method"])
    facts = {
        "caption": comparison.caption,
        "provenance": comparison.provenance,
        "sanity": {name: _findings(findings) for name, findings in comparison.findings.items()},
        "contradictions": comparison.contradictions,
        "beside": json.loads(comparison.beside.to_json(orient="records")),
        "cells": json.loads(comparison.frame.drop(columns="flags").to_json(orient="records")),
    }
    texts = {
        "csv": pd.concat([comparison.frame, comparison.beside]).drop(columns="flags").to_csv(index=False),
        "md": "\n\n".join([comparison.caption, table, *checks]) + "\n",
        "tex": style.to_latex(caption=comparison.caption.translate(TEX), hrules=True),
        "html": comparison._repr_html_(),
        "json": json.dumps(facts, indent=1),
    }
    paths = _write(texts, outputs, comparison.name)
    if not comparison.other_protocol.empty:
        name = f"{comparison.name}_{comparison.other_protocol['protocol'].iloc[0]}"
        paths += _write({"csv": comparison.other_protocol.to_csv(index=False)}, outputs, name)
    return paths


def save_own(results: Report, outputs: Path, name: str, weights: str) -> list[Path]:
    """Write a classifier's report as csv, html and json (with every image's flag) under outputs/tables."""
    worst = results.worst and asdict(results.worst)
    kept = asdict(replace(results, picture=b""))
    facts = {"weights": weights, **kept, "worst": worst, "findings": _findings(results.findings)}
    del facts["picture"]  # the html begins with it
    texts = {"csv": results.frame.to_csv(), "html": results._repr_html_(), "json": json.dumps(facts, indent=1)}
    return _write(texts, outputs, name)


def _findings(findings: tuple[Finding, ...]) -> list[dict[str, Any]]:
    return [asdict(finding) | {"fired": finding.fired} for finding in findings]


def _write(texts: Mapping[str, str], outputs: Path, name: str) -> list[Path]:
    folder = outputs / "tables"
    with disk_errors(outputs):
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            write_atomically(folder / f"{name}.{suffix}", text)
    return [folder / f"{name}.{suffix}" for suffix in texts]


def _wide(comparison: Comparison, format: str) -> pd.DataFrame:
    """One line per student, teacher and row; per column three cells, written for html, md or tex."""
    lines: dict[tuple[str, ...], dict[tuple[str, str], str]] = {}
    kinds = [kind for kind in KINDS if kind != "kept" or comparison.frame["kept"].notna().any()]
    for record in comparison.frame.to_dict("records") + comparison.beside.to_dict("records"):
        cells, column = lines.setdefault(tuple(record[key] for key in LINE), {}), record["column"]
        heading = comparison.headings.get(column, column)  # what stands beside them has none
        cells |= {(heading, kind): _cell(record, kind, format) for kind in kinds if kind in record}
    index = pd.MultiIndex.from_tuples(lines, names=["student", "teacher", "method"])
    wide = pd.DataFrame(list(lines.values()), index=index).fillna("–")
    return wide.set_axis(pd.MultiIndex.from_tuples(wide.columns), axis=1)


def _cell(record: Mapping[str, Any], kind: str, format: str) -> str:
    """A number with its interval, its spread over the seeds, its source and its mark."""
    value = record[kind]
    if pd.isna(value):
        text = "–"
    elif kind == "reported":
        text = f"{value:.2f}{record['source_mark']}"
    elif kind == "difference":
        text = f"{value:+.1f}"
    else:
        of = "kept_" if kind == "kept" else ""
        spread = f" ± {record[of + 'sd']:.1f}" if record[of + "seeds"] > 1 else ""
        text = f"{value:.1f}{spread} [{record[of + 'low']:.1f}, {record[of + 'high']:.1f}]"
    mark = record.get(f"{kind}_mark") or kind
    return MARKS[format].get(mark, "{}").format(text.translate(TEX) if format == "tex" else text)


def _flat(comparison: Comparison, format: str) -> pd.DataFrame:
    flat = _wide(comparison, format).reset_index()
    return flat.set_axis([" ".join(filter(None, column)) for column in flat.columns], axis=1)


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
