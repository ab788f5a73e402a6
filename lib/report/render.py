"""A comparison as a table for the eye, and saved for a report."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from lib.evaluate import Finding, Report, WorstCase, strip, summary, wilson
from lib.files import disk_errors, write_atomically

KINDS = ("reported", "measured", "difference")


@dataclass(frozen=True, repr=False)
class Comparison:
    """A table's numbers, one line per student, teacher, row and column, and the caption they are shown under.

    The flags are one string per seed, a character per image. `frame` has: student, teacher, row, column, reported,
    quoted, measured, k, n, low, high, sd, seeds, difference and the marks (best, second or empty) of the reported and
    the measured number within their student, teacher and column.
    """

    name: str
    frame: pd.DataFrame
    headings: dict[str, str]
    caption: str
    provenance: dict[str, Any]
    flags: dict[tuple[str, str, str, str], list[str]] = field(default_factory=dict)  # by student, teacher, row, column
    worst: dict[tuple[str, str, str], list[WorstCase]] = field(default_factory=dict)  # by student, teacher, row
    findings: dict[str, tuple[Finding, ...]] = field(default_factory=dict)  # what the sanity checks found, by network
    contradictions: dict[str, list[str]] = field(default_factory=dict)  # what cannot be, by network
    also: pd.DataFrame = field(default_factory=pd.DataFrame)  # measured under another protocol, a line per number

    def __repr__(self) -> str:
        return (
            self.caption
            + "\n"
            + self.frame.pivot_table(
                index=["student", "teacher", "row"], columns="column", values="measured", sort=False
            )
            .round(1)
            .to_string()
            + "\n"
            + " ".join(summary(self.findings, self.contradictions))
        )

    def _repr_html_(self) -> str:
        return styled(self).to_html() + strip(self.findings, self.contradictions)


def styled(comparison: Comparison) -> Styler:
    """The comparison for the eye: best in bold, second underlined, intervals behind the measured numbers."""
    texts, marks = _wide(comparison, _text), _wide(comparison, _css)
    style = texts.style.apply(lambda _: marks, axis=None).set_caption(comparison.caption)
    style.set_table_styles(
        [
            {
                "selector": "caption",
                "props": "text-align: left; caption-side: top; padding-bottom: 0.6em; max-width: 60em",
            },
            {"selector": "th, td", "props": "text-align: left; white-space: nowrap; font-size: 80%; padding: 2px 5px"},
            {"selector": "th.row_heading", "props": "vertical-align: top"},
        ]
    )
    return style.set_uuid(comparison.name)


def save(comparison: Comparison, outputs: Path) -> list[Path]:
    """Write the table as csv, md, tex, html and json under outputs/tables: equal results of equal code, equal bytes.

    What was measured under another protocol goes to a csv of its own, <name>_<protocol>.csv.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    plain, latex = _wide(comparison, _markdown), _wide(comparison, _latex)
    said = summary(comparison.findings, comparison.contradictions)
    texts = {
        "csv": pd.concat([comparison.frame, _worst_lines(comparison)]).to_csv(index=False),
        "md": "\n\n".join((comparison.caption, _flat(plain).to_markdown(index=False, disable_numparse=True), *said))
        + "\n",
        "tex": _flat(latex).style.hide(axis="index").to_latex(caption=_tex(comparison.caption), hrules=True),
        "html": comparison._repr_html_(),
        "json": json.dumps(
            {
                "caption": comparison.caption,
                "provenance": comparison.provenance,
                "sanity": {name: [_as_json(one) for one in found] for name, found in comparison.findings.items()},
                "contradictions": comparison.contradictions,
                "worst": [[*key, [asdict(one) for one in found]] for key, found in comparison.worst.items()],
                "cells": json.loads(comparison.frame.to_json(orient="records")),
            },
            indent=1,
        ),
    }
    others = [] if comparison.also.empty else comparison.also.groupby("protocol")
    return _write(texts, outputs, comparison.name) + [
        path
        for protocol, lines in others
        for path in _write({"csv": lines.to_csv(index=False)}, outputs, f"{comparison.name}_{protocol}")
    ]


def save_own(shown: Report, outputs: Path, name: str, weights: str) -> list[Path]:
    """Write a classifier's report as csv, html and json under outputs/tables; the flags of every image are in the json.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    told: dict[str, Any] = {"weights": weights, "protocol": shown.protocol, "notes": list(shown.notes)}
    told["accuracies"] = [accuracy.to_json() for accuracy in shown.accuracies]
    told["worst"] = shown.worst and asdict(shown.worst)
    told["findings"] = [_as_json(finding) for finding in shown.findings]
    texts = {"csv": shown.frame.to_csv(), "html": shown._repr_html_(), "json": json.dumps(told, indent=1)}
    return _write(texts, outputs, name)


def _write(texts: dict[str, str], outputs: Path, name: str) -> list[Path]:
    folder = outputs / "tables"
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in texts}
    with disk_errors(outputs):
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, path in paths.items():
            write_atomically(path, texts[suffix])
    return list(paths.values())


def _wide(comparison: Comparison, text: Callable[[dict[str, Any], str], str]) -> pd.DataFrame:
    """One line per student, teacher and row; per column three cells, each made by text(record, kind)."""
    lines: dict[tuple[str, str, str], dict[tuple[str, str], str]] = {}
    for record in comparison.frame.to_dict("records"):
        line = lines.setdefault((record["student"], record["teacher"], record["row"]), {})
        heading = comparison.headings[record["column"]]
        line |= {(heading, kind): text(record, kind) for kind in KINDS}
    for key, cells in lines.items() if comparison.worst else ():
        cells["Worst case", "measured"] = text(_as_record(comparison.worst.get(key, [])), "measured")
    index = pd.MultiIndex.from_tuples(lines, names=["student", "teacher", "method"])
    wide = pd.DataFrame(list(lines.values()), index=index)
    return wide.set_axis(pd.MultiIndex.from_tuples(wide.columns), axis=1)


def _as_json(finding: Finding) -> dict[str, Any]:
    return asdict(finding) | {"fired": finding.fired}


def _worst_lines(comparison: Comparison) -> pd.DataFrame:
    """The worst cases as lines of the saved table."""
    keys = ("student", "teacher", "row")
    lines = [
        dict(zip(keys, key, strict=True)) | {"column": "Worst case"} | _as_record(worst) | {"n": worst[0].n}
        for key, worst in comparison.worst.items()
    ]
    return pd.DataFrame(lines)


def _as_record(worst: list[WorstCase]) -> dict[str, Any]:
    """The seeds' worst cases as a cell: their mean, its interval on images that the seeds share, their spread."""
    if not worst:
        return {"measured": None}
    percents = pd.Series([one.percent for one in worst])
    low, high = wilson(round(sum(one.k for one in worst) / len(worst)), worst[0].n)
    return {"measured": percents.mean(), "low": low, "high": high, "sd": percents.std(), "seeds": len(worst)}


def _text(record: dict[str, Any], kind: str) -> str:
    value = record[kind]
    if value is None or pd.isna(value):
        return "–"
    if kind == "reported":
        return f"{value:.2f}" + record.get("source_mark", "")
    if kind == "difference":
        return f"{value:+.1f}"
    spread = f" ± {record['sd']:.1f}" if record["seeds"] > 1 else ""
    return f"{value:.1f}{spread} [{record['low']:.1f}, {record['high']:.1f}]"


def _mark(record: dict[str, Any], kind: str) -> str:
    return record.get(f"{kind}_mark", "")


def _css(record: dict[str, Any], kind: str) -> str:
    faint = "color: #777" if kind == "difference" else ""
    return {"best": "font-weight: bold", "second": "text-decoration: underline"}.get(_mark(record, kind), faint)


def _markdown(record: dict[str, Any], kind: str) -> str:
    text = _text(record, kind)
    return {"best": f"**{text}**", "second": f"<u>{text}</u>"}.get(_mark(record, kind), text)


def _latex(record: dict[str, Any], kind: str) -> str:
    text = _tex(_text(record, kind))
    return {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}"}.get(_mark(record, kind), text)


def _tex(text: str) -> str:
    for plain, command in (
        ("%", r"\%"),
        ("†", r"$^\dagger$"),
        ("‡", r"$^\ddagger$"),
        ("§", r"\S{}"),
        ("¶", r"\P{}"),
        ("±", r"$\pm$"),
        ("–", "--"),
        ("&", r"\&"),
        ("_", r"\_"),
    ):
        text = text.replace(plain, command)
    return text


def _flat(wide: pd.DataFrame) -> pd.DataFrame:
    flat = wide.reset_index()
    flat.columns = [" ".join(filter(None, column)) for column in flat.columns]
    return flat
