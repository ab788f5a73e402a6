"""The papers' own numbers, from params/reported and params/choices."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from lib.experiment.parameters import PARAMS, read_yaml
from lib.experiment.table import Table
from lib.experiment.table_file import Row, TableFile


def lines(table: Table) -> list[tuple[str, str, Row]]:
    """Student, teacher and row of every line of the table; a row may stand in some students' blocks only."""
    return [
        (student, teacher, row)
        for student in table.students
        for teacher in table.teacher_names
        for row in table.rows
        if not row.only_students or student in row.only_students
    ]


def reported(file: TableFile, student: str, teacher: str, row: Row, column: str) -> float | None:
    """The paper's number for a cell, whichever of its tables' shapes it stands in; None where there is none."""
    entry, key, columns = file.reported(student), row.reported or row.row, file.columns
    rows = entry.get("rows", entry.get(student, {}))
    if key in entry.get("columns", ()):  # the paper's columns are the rows here
        key, column, columns = column, key, entry["columns"]
    if isinstance(rows, list):
        rows = {row_key(one): one["values"] for one in rows}
    values = rows.get(key)
    if isinstance(values, dict):
        values = values.get(teacher)
    value = None if values is None else values[columns.index(column)]
    return None if value in (None, "-") else float(value)


def row_key(one: Mapping[str, Any]) -> str:
    """What a row of the paper's is called in a table file, where the paper's rows are a list."""
    parts = ("dataset", "database", "teacher", "model", "method")
    return one.get("id") or "/".join(one[part] for part in parts if part in one)


def reported_table(table: Table) -> pd.DataFrame:
    """The paper's numbers alone, as params/reported/ has them; a cell that is lost stays empty."""
    columns, rows = table.file.columns, lines(table)
    values = [[reported(table.file, *line, column) for column in columns] for line in rows]
    keys = [(student, teacher, row.row) for student, teacher, row in rows]
    index = pd.MultiIndex.from_tuples(keys, names=["student", "teacher", "method"])
    return pd.DataFrame(values, index=index, columns=columns, dtype=float)


def printed(entry: Mapping[str, Any], columns: Iterable[str] = ()) -> pd.DataFrame:
    """All rows of an entry of the paper's whose rows are a list, whichever of them are run here; a dash is missing."""
    rows = {row_key(one): one["values"] for one in entry["rows"]}
    return pd.DataFrame(rows, index=list(columns or entry["columns"])).T.replace("-", None).astype(float)


def paper(name: str) -> dict[str, Any]:
    """All of params/reported/<name>.yaml: the paper's tables, what its prose claims, and what others print."""
    return read_yaml(PARAMS / "reported" / f"{name}.yaml")


def choices(paper: str) -> pd.DataFrame:
    """What paper and code leave open, what was chosen here and why: params/choices/<paper>.yaml."""
    given = read_yaml(PARAMS / "choices" / f"{paper}.yaml")
    return pd.DataFrame(given["choices"])[["question", "choice", "reason"]]
