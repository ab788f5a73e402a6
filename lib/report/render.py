"""What a notebook displays and saves: a comparison as a table, what it was made with, and code as it runs."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from textwrap import dedent
from typing import Any

import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from lib.evaluate import Finding, Report, strip, summary
from lib.experiment.table import Table, show_path
from lib.files import disk_errors, write_atomically
from lib.report.plot_style import save as save_figure

KINDS = ("reported", "kept", "measured", "difference")
LINE = ["student", "teacher", "row"]  # what names a line of a table
WRITTEN = {  # format -> how it writes the best of a column, and an interval
    "html": ("<b>{}</b>", "<small>{}[{:.1f},<br>{:.1f}]</small>"),
    "md": ("**{}**", "<small>[{:.1f}, {:.1f}]</small>"),
    "tex": (r"\textbf{{{}}}", r"{{\tiny [{:.1f}, {:.1f}]}}"),
}
TEX = str.maketrans(
    {"†": r"$^\dagger$", "‡": r"$^\ddagger$", "§": r"\S{}", "¶": r"\P{}", "±": r"$\pm$", "–": "--", "\n": " "}
    | {character: "\\" + character for character in "%&_#"}
)
STYLE = """<style>
.comparison.comparison > table {table-layout: auto; width: auto; max-width: 100%; border-collapse: collapse}
.comparison.comparison > table {font-size: 12px; line-height: 1.2; font-variant-numeric: tabular-nums; margin: 0}
.comparison.comparison > table :is(th, td) {padding: 1px 2px; text-align: left; white-space: normal; border: 0}
.comparison.comparison > table :is(th, td) {max-width: none; min-width: 0; vertical-align: middle}
.comparison.comparison > table thead th {vertical-align: bottom}
.comparison.comparison > table tbody tr:first-child th {border-top: 1px solid #8888; padding-top: 5px}
.comparison.comparison > table tbody tr:not(:first-child) th {min-width: 4.5em; font-weight: normal}
.comparison.comparison > table small {font-size: 9px; font-weight: normal; line-height: 1}
.comparison.comparison > table td small {display: inline-block; vertical-align: middle; margin-left: 2px}
.comparison.comparison > table span {display: inline-block; white-space: nowrap; min-width: 4.4em}
.comparison.comparison > table thead span {font-size: 9px; font-weight: normal; min-width: 5.8em}
.comparison.comparison > table span.reported {min-width: 3.3em; opacity: 0.75}
.comparison.comparison > table thead span.reported {min-width: 4.4em}
.comparison.comparison > table.high span {display: block}
.comparison.comparison > table thead div {width: 0; min-width: 100%}
.comparison.comparison > :is(p, details) {margin: 4px 0; font-size: 12px; max-width: 80em}
.comparison.comparison details :is(th, td) {padding: 0 2px; font-size: 10px; text-align: left}
.comparison.comparison details tbody th {min-width: 11em}
</style>"""


@dataclass(frozen=True, repr=False)
class Comparison:
    """A table's numbers, one line per student, teacher, row and column, and the two lines that stand above them.

    `flags` is one string per seed, a character per image; a mark is within student, teacher and column: best, untold
    where more than half cannot be told from the best, or empty. `verdict` says where that is. `beside` has the rows'
    worst cases, and the strongest attack on the images that columns with fewer take; `other_protocol` what was measured
    under another protocol. `folded` shows nothing until it is opened.
    """

    name: str
    frame: pd.DataFrame
    headings: dict[str, str]
    caption: str  # what it is, and in a second line on what
    verdict: str
    notes: dict[str, str]  # everything else that a reader may ask
    provenance: dict[str, Any]
    beside: pd.DataFrame
    findings: dict[str, tuple[Finding, ...]]  # of the sanity checks, by network
    contradictions: dict[str, list[str]]  # what cannot be, by network
    other_protocol: pd.DataFrame
    folded: bool = False

    @property
    def kinds(self) -> list[str]:
        """Which of the kinds of numbers there are."""
        return [kind for kind in KINDS if kind in self.frame and self.frame[kind].notna().any()] or ["reported"]

    def __repr__(self) -> str:
        wide = self.frame.pivot_table(index=LINE, columns="column", values=self.kinds[-1], sort=False).round(1)
        checks = summary(self.findings, self.contradictions)
        return "\n".join(filter(None, [self.caption, wide.to_string(), self.verdict, *checks]))

    def _repr_html_(self) -> str:
        return fold(self.caption.replace("\n", " "), self.to_html()) if self.folded else self.to_html()

    def to_html(self) -> str:
        """The table as wide as its page and no wider; below it, folded, its notes, checks and provenance."""
        checks, fired = summary(self.findings, self.contradictions), bool(self.contradictions)
        fired |= any(finding.fired for each in self.findings.values() for finding in each)
        title = "Sanity checks: something fired" if fired else checks[0].rstrip(".")
        high = ' class="high"' * (len(self.kinds) > 2 and len(self.headings) > 4)  # too many to stand side by side
        notes = "".join(f"<p><b>{title}.</b> {escape(text)}</p>" for title, text in self.notes.items())
        parts = [
            f"<p>{escape(self.caption).replace(chr(10), '<br>')}</p><table{high}>{_head(self)}{_body(self)}</table>",
            f"<p>{escape(self.verdict)}</p>" if self.verdict else "",
            fold(f"Notes: {', '.join(self.notes).lower()}", notes),
            fold(title, strip(self.findings, self.contradictions), fired) if self.provenance["runs"] else "",
            fold("Made with", _facts(made_with(self))) if self.provenance["runs"] else "",
        ]
        return f'<div class="comparison">{STYLE}{"".join(parts)}</div>'


def fold(title: str, html: str, is_open: bool = False) -> str:
    """HTML that is there, and shown with one click on its title."""
    return f"<details{' open' * is_open}><summary>{escape(title)}</summary>{html}</details>"


def _head(comparison: Comparison) -> str:
    """A heading per column, what is reduced in it small, above what its numbers are."""
    cells = []
    for heading, kinds in _columns(comparison).items():
        name, bracket, reduced = escape(heading).replace("+", "+<wbr>").partition(" (")
        small = f" <small>({reduced}</small>" if bracket else ""
        cells.append(
            f"<th><div>{name}{small}</div>{' '.join(f'<span class={kind}>{kind}</span>' for kind in kinds)}</th>"
        )
    return f"<thead><tr><th></th>{''.join(cells)}</tr></thead>"


def _body(comparison: Comparison) -> str:
    """A block per student and teacher, named in a line of its own; a line per row."""
    columns, blocks = _columns(comparison), dict[str, list[str]]()
    for (student, teacher, row), cells in _lines(comparison, "html").items():
        values = "".join(f"<td>{cells.get(heading, '–')}</td>" for heading in columns)
        block = f"{student} ← {teacher}" if teacher else student
        blocks.setdefault(block, []).append(f"<tr><th>{escape(row)}</th>{values}</tr>")
    first = '<tr><th colspan="{}">{}</th></tr>'
    parts = [first.format(len(columns) + 1, escape(block)) + "".join(each) for block, each in blocks.items()]
    return "".join(f"<tbody>{part}</tbody>" for part in parts)


def _columns(comparison: Comparison) -> dict[str, list[str]]:
    """Heading -> the kinds of its numbers; what stands beside the table's own columns has its own."""
    own = {comparison.headings[name]: comparison.kinds for name in comparison.frame["column"].unique()}
    if comparison.beside.empty:
        return own
    beside = comparison.beside.groupby("column", sort=False)
    return own | {name: [k for k in comparison.kinds if k in each and each[k].notna().any()] for name, each in beside}


def _lines(comparison: Comparison, format: str) -> dict[tuple[str, ...], dict[str, str]]:
    """(student, teacher, row) -> heading -> its numbers, written for html, md or tex."""
    lines, kinds = dict[tuple[str, ...], dict[str, str]](), _columns(comparison)
    for record in comparison.frame.to_dict("records") + comparison.beside.to_dict("records"):
        heading = comparison.headings.get(record["column"], record["column"])  # what stands beside them has none
        numbers = {kind: _number(record, kind, format) for kind in kinds[heading]}
        spans = " ".join(f"<span class={kind}>{text}</span>" for kind, text in numbers.items())
        cell = spans if format == "html" else " / ".join(numbers.values())
        lines.setdefault(tuple(record[key] for key in LINE), {})[heading] = cell
    return lines


def _number(record: Mapping[str, Any], kind: str, format: str) -> str:
    """A number with its interval, its spread over the seeds, its source and its mark."""
    value, (best, interval), small = record[kind], WRITTEN[format], ""
    if pd.isna(value):
        text = "–"
    elif kind == "reported":
        text = f"{value:.2f}{record['source_mark']}"
    elif kind == "difference":
        text = f"{value:+.1f}"
    else:
        of = "kept_" if kind == "kept" else ""
        text, low, high = f"{value:.1f}", record[of + "low"], record[of + "high"]
        sd = f" ± {record[of + 'sd']:.1f}" if record[of + "seeds"] > 1 else ""
        if format == "html":
            small = interval.format(f"{sd}<br>" if sd else "", low, high)
        else:
            text, small = text + sd, " " + interval.format(low, high)
    text = text.translate(TEX) if format == "tex" else text
    return (best.format(text) if record.get(f"{kind}_mark") == "best" else text) + small


def _flat(comparison: Comparison, format: str) -> pd.DataFrame:
    """One line per student, teacher and row, with what differs of these in front; one column per attack."""
    lines = _lines(comparison, format)
    wide = pd.DataFrame(list(lines.values()), columns=[*_columns(comparison)]).fillna("–")
    if format == "tex":  # what a column reduces is in the notes
        wide = wide.rename(columns={heading: name for name, heading in comparison.headings.items()})
    names = pd.DataFrame([*lines], columns=["student", "teacher", "method"])
    return pd.concat([names[[name for name in names if name == "method" or names[name].nunique() > 1]], wide], axis=1)


def save(comparison: Comparison, outputs: Path) -> list[Path]:
    """Write the table as csv, md, tex, html and json under outputs/tables: equal results of equal code, equal bytes.

    What md and tex leave out of their captions is in <name>_notes.md. What was measured under another protocol goes to
    a csv of its own, <name>_<protocol>.csv.
    """
    table = _flat(comparison, "md").to_markdown(index=False, disable_numparse=True)
    checks, flat = summary(comparison.findings, comparison.contradictions), _flat(comparison, "tex")
    style = flat.style.hide(axis="index").format_index(escape="latex", axis=1)
    style = style.format(escape="latex", subset=[name for name in [*LINE[:2], "method"] if name in flat])
    title, text = comparison.caption.split("\n")[0], f"{comparison.caption} {comparison.verdict}".strip()
    made = made_with(comparison) if comparison.provenance["runs"] else {}
    facts = {
        "caption": comparison.caption,
        "verdict": comparison.verdict,
        "notes": comparison.notes,
        "provenance": comparison.provenance,
        "sanity": {name: _findings(findings) for name, findings in comparison.findings.items()},
        "contradictions": comparison.contradictions,
        "beside": json.loads(comparison.beside.to_json(orient="records")),
        "cells": json.loads(comparison.frame.drop(columns="flags").to_json(orient="records")),
    }
    texts = {
        "csv": pd.concat([comparison.frame, comparison.beside]).drop(columns="flags").to_csv(index=False),
        "md": "\n\n".join(filter(None, [comparison.caption, table, comparison.verdict])) + "\n",
        "tex": style.to_latex(caption=(text.translate(TEX), title.translate(TEX)), hrules=True),
        "html": comparison.to_html(),
        "json": json.dumps(facts, indent=1),
    }
    notes = (
        comparison.notes | {"Sanity checks": " ".join(checks)} | {f"Made with, {k}": f"{v}" for k, v in made.items()}
    )
    paragraphs = [comparison.caption, *(f"**{title}.** {text}" for title, text in notes.items())]
    paths = _write(texts, outputs, comparison.name)
    paths += _write({"md": "\n\n".join(paragraphs) + "\n"}, outputs, f"{comparison.name}_notes")
    if not comparison.other_protocol.empty:
        name = f"{comparison.name}_{comparison.other_protocol['protocol'].iloc[0]}"
        paths += _write({"csv": comparison.other_protocol.to_csv(index=False)}, outputs, name)
    return paths


def finish(table: Table, comparison: Comparison, **figures: Figure) -> HTML:
    """The end of a notebook: save the table and each named figure below `outputs`; their paths, and the provenance.

    finish(table, comparison, fig5_dynat=figure) writes figures/fig5_dynat.png and .pdf.
    """
    outputs = table.workspace.outputs
    saved = save(comparison, outputs)
    for name, figure in figures.items():
        saved += save_figure(figure, name, outputs)
    written = f"Written: {', '.join(map(show_path, saved))}."
    return Logged(f"<p>{escape(written)}</p>" + fold("Made with", _facts(made_with(comparison))), written)


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


class Logged(HTML):
    """HTML whose repr, which a log shows, is `text`."""

    def __init__(self, html: str, text: str) -> None:
        super().__init__(html)
        self.text = text

    def __repr__(self) -> str:
        return self.text


def source(*functions: Any) -> HTML:
    """The source of some functions of the library, so that what is read is what runs."""
    code = "\n\n".join(dedent(inspect.getsource(function)).strip() for function in functions)
    look = HtmlFormatter(noclasses=True, nobackground=True, prestyles="font-family: monospace; overflow-x: auto")
    names = ", ".join(f"{function.__module__}.{function.__qualname__}" for function in functions)
    return Logged(highlight(code, PythonLexer(), look), f"The source of {names}.")


def made_with(comparison: Comparison) -> dict[str, str]:
    """What a result was made with, in words, without what is empty."""
    facts = {key: value for key, value in comparison.provenance.items() if key not in ("settings", "runs")}
    texts = {key: "; ".join(value) if isinstance(value, list) else str(value) for key, value in facts.items() if value}
    return {key: text for key, text in texts.items() if text not in ("None", "")} | {
        "runs": ", ".join(comparison.provenance["runs"])
    }


def _facts(facts: Mapping[str, str]) -> str:
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in facts.items())
    return f'<table style="text-align: left">{"".join(lines)}</table>'
