"""Reported beside measured: the comparison, the leads, the controls, and what they were made with."""

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Markdown
from pandas.io.formats.style import Styler

from lib.evaluate import wilson
from lib.experiment import Result
from lib.parameters import PARAMS, read_yaml
from lib.render import Comparison
from lib.render import save as save
from lib.runs import network_digest
from lib.spec import GivenWeights
from lib.table import Row, Table, show_path

TEST_IMAGES = 10_000  # what the papers' numbers were measured on
MADE_WITH = ("commit", "uncommitted_changes", "python", "packages", "device", "threads", "tf32")


def compare(table: Table, results: list[Result]) -> Comparison:
    """Reported, measured and their difference for every cell of the table; a mark is shared inside the noise."""
    records = [
        _record(table, results, student, teacher, row, column)
        for student in table.students
        for teacher in table.teacher_names
        for row in table.rows
        if _stands(row, student)
        for column in table.file.columns
    ]
    frame = pd.DataFrame(records)
    block = frame.groupby(["student", "teacher", "column"], sort=False)
    for kind in ("reported", "measured"):
        bounds = "reported_low" if kind == "reported" else "low"
        frame[f"{kind}_mark"] = pd.concat([_marks(part[kind], part[bounds]) for _, part in block]).reindex(frame.index)
    return Comparison(table.name, frame, table.headings(), _caption(table, frame), _provenance(table, results))


def reported_table(table: Table) -> pd.DataFrame:
    """The paper's numbers alone, as params/reported/ has them; a cell that is lost stays empty."""
    keys = [(s, t, row) for s in table.students for t in table.teacher_names for row in table.rows if _stands(row, s)]
    values = [[_reported(table, s, t, row, column) for column in table.file.columns] for s, t, row in keys]
    index = pd.MultiIndex.from_tuples([(s, t, row.row) for s, t, row in keys], names=["student", "teacher", "method"])
    return pd.DataFrame(values, index=index, columns=table.file.columns, dtype=float)


def gains(table: Table, comparison: Comparison, row: str = "DGAD") -> pd.DataFrame:
    """`row`'s lead over the best other row, per student, teacher and column: printed, recomputed, and measured here."""
    records = []
    for key, block in comparison.frame.groupby(["student", "teacher", "column"], sort=False):
        own, others = block[block.row == row], block[block.row != row]
        printed = table.reported.get(key[0], {}).get("delta_printed")
        printed = printed.get(key[1]) if isinstance(printed, dict) else printed
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


def also_measured(table: Table, results: list[Result]) -> pd.DataFrame:
    """The columns that the table's networks were measured under beside the paper's, with the published ones again."""
    records = [
        {"student": r.student, "teacher": r.teacher, "row": r.row, "seed": r.seed}
        | {a.column.name: round(a.percent, 1) for a in r.accuracies}
        for r in results
        if r.row in {row.row for row in table.rows}
    ]
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


def _stands(row: Row, student: str) -> bool:
    return not row.only_students or student in row.only_students


def _record(table: Table, results: list[Result], student: str, teacher: str, row: Row, column: str) -> dict[str, Any]:
    reported = _reported(table, student, teacher, row, column)
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


def _reported(table: Table, student: str, teacher: str, row: Row, column: str) -> float | None:
    """The paper's number for a cell, whichever of its tables' three shapes it stands in; None where there is none."""
    entry, key = table.reported, row.reported or row.row
    rows = entry.get("rows", entry.get(student, {}))
    if isinstance(rows, list):
        rows = {one.get("id") or f"{one['dataset']}/{one['teacher']}": one["values"] for one in rows}
    values = rows.get(key)
    if isinstance(values, dict):
        values = values.get(teacher)
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


def _caption(table: Table, frame: pd.DataFrame) -> str:
    used = {*table.students, *table.teacher_names}
    stand_ins = [f"{own} for {paper}" for paper, own in table.scale.models.items() if own != paper and paper in used]
    trained = [name for name, net in table.teachers.items() if not isinstance(net, GivenWeights)]
    sources = sorted(set(frame["quoted"]) - {""})
    parts = [
        f"{table.file.title} ({table.file.paper.upper()}, {table.file.item}), accuracy in %.",
        f"Reported: {table.reported.get('title', '')}, 10,000 test images. Measured at scale '{table.scale_name}': "
        f"{table.scale.title}; data: {table.place.dataset(table.data).name}.",
        f"Settings replaced: {', '.join(sorted(table.replaced))}." if table.replaced else "",
        f"Stand-ins: {', '.join(stand_ins)}." if stand_ins else "",
        f"Teachers trained here by PGD-AT: {', '.join(trained)}." if trained else "",
        f"† equal to {', '.join(sources)}'s table to the digit, so very likely quoted." if sources else "",
        "In brackets the 95 % Wilson interval; best in bold and second underlined within student and teacher, shared "
        "by all that lie inside the leader's interval: much bold means that little can be told apart.",
    ]
    if stand_ins or table.replaced:
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
