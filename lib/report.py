"""Reported beside measured: the comparison as one tidy frame, shown as a table and saved for a report."""

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Markdown
from pandas.io.formats.style import Styler

from lib.evaluate import wilson
from lib.experiment import Result
from lib.parameters import PARAMS, read_yaml
from lib.runs import network_digest
from lib.spec import GivenWeights
from lib.store import said_plainly, write_atomically
from lib.table import Row, Table, show_path

TEST_IMAGES = 10_000  # what the papers' numbers were measured on
KINDS = ("reported", "measured", "difference")
MADE_WITH = ("commit", "uncommitted_changes", "python", "packages", "device", "threads", "tf32")


@dataclass(frozen=True, repr=False)
class Comparison:
    """A table's numbers, one line per student, teacher, row and column, and the caption they are shown under.

    `frame` has: student, teacher, row, column, reported, quoted, measured, k, n, low, high, sd, seeds, difference and
    the marks (best, second or empty) of the reported and the measured number within their student, teacher and column.
    """

    name: str
    frame: pd.DataFrame
    headings: dict[str, str]
    caption: str
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        return (
            self.caption
            + "\n"
            + self.frame.pivot_table(
                index=["student", "teacher", "row"], columns="column", values="measured", sort=False
            )
            .round(1)
            .to_string()
        )

    def _repr_html_(self) -> str:
        return styled(self).to_html()


def compare(table: Table, results: list[Result]) -> Comparison:
    """Reported, measured and their difference for every cell of the table; a mark is shared inside the noise."""
    records = [
        _record(table, results, student, teacher, row, column)
        for student in table.students
        for teacher in table.teacher_names
        for row in table.rows
        if not row.only_students or student in row.only_students
        for column in table.file.columns
    ]
    frame = pd.DataFrame(records)
    block = frame.groupby(["student", "teacher", "column"], sort=False)
    for kind in ("reported", "measured"):
        bounds = "reported_low" if kind == "reported" else "low"
        frame[f"{kind}_mark"] = pd.concat([_marks(part[kind], part[bounds]) for _, part in block]).reindex(frame.index)
    return Comparison(table.name, frame, table.headings(), _caption(table, frame), _provenance(table, results))


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


def reported_table(table: Table) -> pd.DataFrame:
    """The paper's numbers alone, as params/reported/ has them."""
    index = pd.MultiIndex.from_tuples(
        [(s, t, row.row) for s in table.students for t in table.teacher_names for row in table.rows],
        names=["student", "teacher", "method"],
    )
    values = [[_reported(table, s, t, row, column) for column in table.file.columns] for s, t, row in index]
    return pd.DataFrame(values, index=index, columns=table.file.columns).dropna(how="all")


def save(comparison: Comparison, outputs: Path) -> list[Path]:
    """Write the table as csv, md, tex, html and json under outputs/tables: equal results of equal code, equal bytes.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    plain, latex = _wide(comparison, _markdown), _wide(comparison, _latex)
    texts = {
        "csv": comparison.frame.to_csv(index=False),
        "md": comparison.caption + "\n\n" + _flat(plain).to_markdown(index=False) + "\n",
        "tex": _flat(latex).style.hide(axis="index").to_latex(caption=_tex(comparison.caption), hrules=True),
        "html": styled(comparison).to_html(),
        "json": json.dumps(
            {
                "caption": comparison.caption,
                "provenance": comparison.provenance,
                "cells": json.loads(comparison.frame.to_json(orient="records")),
            },
            indent=1,
        ),
    }
    folder = outputs / "tables"
    paths = {suffix: folder / f"{comparison.name}.{suffix}" for suffix in texts}
    with said_plainly(outputs):
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, path in paths.items():
            write_atomically(path, texts[suffix])
    return list(paths.values())


def gains(table: Table, comparison: Comparison, row: str = "DGAD") -> pd.DataFrame:
    """`row`'s lead over the best other row, per student, teacher and column: printed, recomputed, and measured here."""
    records = []
    for key, block in comparison.frame.groupby(["student", "teacher", "column"], sort=False):
        own, others = block[block.row == row], block[block.row != row]
        printed = table.reported.get(key[0], {}).get("delta_printed", {}).get(key[1])
        record = dict(zip(("student", "teacher", "column"), key, strict=True))
        record["printed lead"] = printed and printed[table.file.columns.index(key[2])]
        for kind in ("reported", "measured"):
            known = not own.empty and own[kind].notna().all() and others[kind].notna().any()
            best = others.loc[others[kind].astype(float).idxmax()] if known else None
            record[f"{kind} lead"] = None if best is None else round(float(own[kind].iloc[0]) - float(best[kind]), 2)
            record[f"over ({kind})"] = "" if best is None else best.row
        records.append(record)
    return pd.DataFrame(records)


def choices(paper: str) -> pd.DataFrame:
    """What paper and code leave open, what was chosen here and why: params/choices/<paper>.yaml."""
    given = read_yaml(PARAMS / "choices" / f"{paper}.yaml")
    return pd.DataFrame(given["choices"])[["question", "choice", "reason"]]


def source(*functions: Any) -> Markdown:
    """The source of some functions of the library, so that what is read is what runs."""
    code = "\n\n".join(inspect.getsource(function).strip() for function in functions)
    return Markdown(f"```python\n{code}\n```")


def provenance_table(comparison: Comparison, saved: list[Path]) -> Styler:
    """What a result was made with, and where it was written, for the end of a notebook."""
    facts = {k: v for k, v in comparison.provenance.items() if k not in ("settings", "runs")}
    facts = {k: ", ".join(v) if isinstance(v, list) else v for k, v in facts.items()}
    facts |= {"runs": f"{len(comparison.provenance['runs'])} networks", "written": ", ".join(map(show_path, saved))}
    return pd.DataFrame({"": facts.values()}, index=list(facts)).style.set_properties(**{"text-align": "left"})


def floor(table: Table, results: list[Result]) -> pd.DataFrame:
    """What the controls show: per student and attack, the undefended network beside the weakest of the table's rows."""
    records = []
    for control in (r for r in results if r.row in {cell.row.row for cell in table.controls}):
        for own in control.accuracies:
            rivals = {
                f"{r.row} ← {r.teacher}" if r.teacher else r.row: a.percent
                for r in results
                if r.student == control.student and r.row in {row.row for row in table.rows}
                for a in r.accuracies
                if a.column == own.column
            }
            weakest = min(rivals, key=lambda name: rivals[name])
            records.append(
                {
                    "student": control.student,
                    "attack": own.column.name,
                    control.row: own.percent,
                    "weakest row": weakest,
                    "its accuracy": rivals[weakest],
                }
            )
    return pd.DataFrame(records)


def teachers_table(table: Table, results: list[Result]) -> pd.DataFrame:
    """The teachers' own accuracies, and where each came from."""
    records = []
    for result in (r for r in results if r.row == "teacher"):
        origin = (
            "a given file" if isinstance(table.teachers[result.student], GivenWeights) else "trained here by PGD-AT"
        )
        values = {table.headings()[a.column.name]: round(a.percent, 1) for a in result.accuracies}
        records.append({"teacher": result.student, "weights": origin, **values})
    return pd.DataFrame(records)


def _record(table: Table, results: list[Result], student: str, teacher: str, row: Row, column: str) -> dict[str, Any]:
    reported = _reported(table, student, teacher, row.row, column)
    mine = [r for r in results if r.student == student and r.row == row.row and r.teacher in ("", teacher)]
    accuracies = [a for r in mine for a in r.accuracies if a.column.name == column]
    percents = [a.percent for a in accuracies]
    n = accuracies[0].n if accuracies else 0  # the seeds share their test images, so these count once
    k = round(sum(a.k for a in accuracies) / len(accuracies)) if accuracies else 0
    low, high = wilson(k, n) if n else (None, None)
    measured = sum(percents) / len(percents) if percents else None
    spread = pd.Series(percents).std() if len(percents) > 1 else None
    return {
        "student": student,
        "teacher": teacher,
        "row": row.row,
        "column": column,
        "reported": reported,
        "reported_low": None if reported is None else wilson(round(reported * TEST_IMAGES / 100), TEST_IMAGES)[0],
        "quoted": row.quoted.get(student, ""),
        "measured": measured,
        "k": k,
        "n": n,
        "low": low,
        "high": high,
        "sd": spread,
        "seeds": len(accuracies),
        "difference": None if reported is None or measured is None else measured - reported,
    }


def _reported(table: Table, student: str, teacher: str, row: str, column: str) -> float | None:
    values = table.reported.get(student, {}).get(row, {}).get(teacher)
    return None if values is None else values[table.file.columns.index(column)]


def _marks(values: pd.Series, lows: pd.Series) -> pd.Series:
    """best, second or "" for each value; a value inside the leader's 95 % interval shares its mark."""
    values = values.astype(float)
    marks = pd.Series("", index=values.index)
    for mark in ("best", "second"):
        rest = values[marks == ""].dropna()
        if rest.empty:
            break
        marks[rest.index[rest >= lows[rest.idxmax()]]] = mark
    return marks


def _wide(comparison: Comparison, text: Callable[[dict[str, Any], str], str]) -> pd.DataFrame:
    """One line per student, teacher and row; per column three cells, each made by text(record, kind)."""
    lines: dict[tuple[str, str, str], dict[tuple[str, str], str]] = {}
    for record in comparison.frame.to_dict("records"):
        line = lines.setdefault((record["student"], record["teacher"], record["row"]), {})
        heading = comparison.headings[record["column"]]
        line |= {(heading, kind): text(record, kind) for kind in KINDS}
    index = pd.MultiIndex.from_tuples(lines, names=["student", "teacher", "method"])
    wide = pd.DataFrame(list(lines.values()), index=index)
    return wide.set_axis(pd.MultiIndex.from_tuples(wide.columns), axis=1)


def _text(record: dict[str, Any], kind: str) -> str:
    value = record[kind]
    if value is None or pd.isna(value):
        return "–"
    if kind == "reported":
        return f"{value:.2f}" + ("†" if record["quoted"] else "")
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


def _caption(table: Table, frame: pd.DataFrame) -> str:
    used = {*table.students, *table.teacher_names}
    stand_ins = [f"{own} for {paper}" for paper, own in table.scale.models.items() if own != paper and paper in used]
    trained = [name for name, net in table.teachers.items() if not isinstance(net, GivenWeights)]
    sources = sorted(set(frame["quoted"]) - {""})
    parts = [
        f"{table.file.title} ({table.file.paper.upper()}, {table.file.item}), accuracy in %.",
        f"Reported: {table.reported.get('title', '')}, 10,000 test images. Measured at scale '{table.scale_name}': "
        f"{table.scale.title}; data: {table.data.name}.",
        f"Settings replaced: {', '.join(sorted(table.replaced))}." if table.replaced else "",
        f"Stand-ins: {', '.join(stand_ins)}." if stand_ins else "",
        f"Teachers trained here by PGD-AT: {', '.join(trained)}." if trained else "",
        f"† equal to {', '.join(sources)}'s table to the digit, so very likely quoted." if sources else "",
        "In brackets the 95 % Wilson interval; best in bold and second underlined within student and teacher, shared "
        "by all that lie inside the leader's interval: much bold means that little can be told apart.",
    ]
    if stand_ins or table.replaced or table.data.name != "cifar10":
        parts.append("The difference compares different conditions, so it says nothing about the paper.")
    return " ".join(part for part in parts if part)


def _provenance(table: Table, results: list[Result]) -> dict[str, Any]:
    made = [facts for result in results for facts in result.made]
    shared = {key: sorted({str(facts[key]) for facts in made}) for key in MADE_WITH}
    return shared | {
        "scale": table.scale_name,
        "settings": asdict(table.scale),
        "data_sha256": table.data.sha256,
        "teachers": {name: network_digest(net, table.data) for name, net in table.teachers.items()},
        "runs": sorted({result.digest for result in results}),
    }
